"""The parts of a UNet in Flax (Dhariwal and Nichol 2021, arXiv 2105.05233). Feature maps are (b, h, w, c)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import linen as nn

from lightning_vfs.core.config import EncoderConfig
from lightning_vfs.core.denoiser_config import DenoiserConfig
from lightning_vfs.core.unet import norm_groups
from lightning_vfs.flax.attention import CrossAttention
from lightning_vfs.flax.layers import dropout

Direction = Literal["down", "up"]

# Padded by one pixel on every side as in torch: flax's "SAME" would put less before than after where strides are 2.
Conv3x3 = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1)


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a UNet have in common.

    Args:
        scale_shift_norm: the embedding scales and shifts the normalised features; else it is added before the norm.
        resblock_updown: residual blocks change the resolution; else convolutions do.
        dropout: probability of dropout in every residual block.
        heads: attention heads.
        crosses: cross-attention to the context's tokens follows every self-attention.
    """

    scale_shift_norm: bool
    resblock_updown: bool
    dropout: float
    heads: int
    crosses: bool


class HalfUNet(nn.Module):
    """What a UNet does up to its smallest feature maps: a convolution, levels of falling resolution, and the middle."""

    def features(
        self,
        part: EncoderConfig | DenoiserConfig,
        options: BlockOptions,
        x: jax.Array,
        embedding: jax.Array | None,
        context: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Feature maps of an image (b, h, w, c): after the first convolution, every block and every halving.

        The last has gone through the middle, too, in addition to the one before it.
        """
        widths = [part.channels * mult for mult in part.channel_mult]
        features = [Conv3x3(widths[0], name="conv_in")(x)]
        for i, width in enumerate(widths):
            attends = features[-1].shape[1] in part.attention_resolutions
            direction: Direction | None = None if i == len(widths) - 1 else "down"
            level = DownLevel(part.num_res_blocks, width, attends, direction, options, name=f"down_{i}")
            features += level(features[-1], embedding, context)
        x = features[-1]
        for i, attends in enumerate((True, False)):
            x = Block(widths[-1], attends, options, name=f"middle_{i}")(x, embedding, context)
        return [*features, x]


class DownLevel(nn.Module):
    """x (b, h, w, c), embedding (b, e), context (b, tokens, d) -> maps after every block, and the last one halved."""

    num_blocks: int
    dim: int
    attends: bool
    direction: Direction | None
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None, context: jax.Array | None) -> list[jax.Array]:
        features = []
        for i in range(self.num_blocks):
            x = Block(self.dim, self.attends, self.options, name=f"blocks_{i}")(x, embedding, context)
            features.append(x)
        return (
            [*features, _resample(self.dim, self.direction, self.options)(x, embedding)] if self.direction else features
        )


class UpLevel(nn.Module):
    """x (b, h, w, c), and a map (b, h, w, skip) for every block -> (b, 2h, 2w, dim), at the last level h, w."""

    dim: int
    attends: bool
    direction: Direction | None
    options: BlockOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: Sequence[jax.Array], embedding: jax.Array, context: jax.Array | None
    ) -> jax.Array:
        for i, skip in enumerate(skips):
            block = Block(self.dim, self.attends, self.options, name=f"blocks_{i}")
            x = block(jnp.concatenate([x, skip], axis=-1), embedding, context)
        return _resample(self.dim, self.direction, self.options)(x, embedding) if self.direction else x


class Block(nn.Module):
    """A residual block, then self-attention and, with a context, cross-attention, each with a skip.

    x (b, h, w, c), embedding (b, e), context (b, tokens, d) -> (b, h, w, dim).
    """

    dim: int
    attends: bool
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None, context: jax.Array | None) -> jax.Array:
        x = ResBlock(self.dim, self.options, name="res")(x, embedding)
        if self.attends:
            x = x + _over_positions(SelfAttention2d(self.options.heads, name="attn"), x)
        if self.attends and self.options.crosses:
            x = x + _over_positions(CrossAttention2d(self.options.heads, name="cross_attn"), x, context)
        return x


class ResBlock(nn.Module):
    """Two convolutions with a skip, modulated by an embedding (b, e): (b, h, w, c) -> (b, h', w', dim).

    h' and w' are h and w, or half or twice of them in a direction.
    """

    dim: int
    options: BlockOptions
    direction: Direction | None = None

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None) -> jax.Array:
        options = self.options
        hidden = _resized(nn.silu(group_norm(x.shape[-1], "norm1")(x)), self.direction)
        hidden = self._modulated_norm(Conv3x3(self.dim, name="conv1")(hidden), embedding)
        hidden = dropout(self, options.dropout)(nn.silu(hidden))
        skip = _resized(x, self.direction)
        if x.shape[-1] != self.dim:
            skip = nn.Conv(self.dim, (1, 1), name="skip")(skip)
        return skip + Conv3x3(self.dim, name="conv2")(hidden)

    def _modulated_norm(self, x: jax.Array, embedding: jax.Array | None) -> jax.Array:
        norm, scale_shift = group_norm(self.dim, "norm2"), self.options.scale_shift_norm
        if embedding is None:
            return norm(x)
        modulation = nn.Dense((2 if scale_shift else 1) * self.dim, name="modulation")(nn.silu(embedding))
        modulation = rearrange(modulation, "b d -> b 1 1 d")
        if not scale_shift:
            return norm(x + modulation)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        return norm(x) * (1 + scale) + shift


class SelfAttention2d(nn.Module):
    """Normalised positions of a feature map attend to each other: (b, l, dim) -> (b, l, dim)."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dim, heads = x.shape[-1], self.heads
        qkv = nn.Dense(3 * dim, name="qkv")(group_norm(dim, "norm")(x))
        q, k, v = rearrange(qkv, "b l (three h d) -> three b l h d", three=3, h=heads)
        return nn.Dense(dim, name="out")(rearrange(nn.dot_product_attention(q, k, v), "b l h d -> b l (h d)"))


class CrossAttention2d(CrossAttention):
    """The same with the norm of a feature map: (b, l, dim), (b, m, context_dim) -> (b, l, dim)."""

    def _norm(self, x: jax.Array) -> jax.Array:
        return group_norm(x.shape[-1], "norm")(x)


class Resample(nn.Module):
    """A convolution that halves or doubles the resolution: (b, h, w, dim) -> (b, h', w', dim)."""

    dim: int
    direction: Direction

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None) -> jax.Array:
        if self.direction == "down":
            return Conv3x3(self.dim, strides=2, name="conv")(x)
        return Conv3x3(self.dim, name="conv")(_resized(x, "up"))


def group_norm(dim: int, name: str) -> nn.GroupNorm:
    """GroupNorm of `norm_groups(dim)` groups, over all axes between the first and the last."""
    return nn.GroupNorm(norm_groups(dim), epsilon=1e-5, use_fast_variance=False, name=name)


def _resample(dim: int, direction: Direction, options: BlockOptions) -> nn.Module:
    if options.resblock_updown:
        return ResBlock(dim, options, direction, name="resample")
    return Resample(dim, direction, name="resample")


def _resized(x: jax.Array, direction: Direction | None) -> jax.Array:
    """Without parameters: means of 2 x 2 pixels (down), each pixel four times (up), or nothing."""
    match direction:
        case "down":
            return reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)
        case "up":
            return repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)
        case _:
            return x


def _over_positions(attention: nn.Module, x: jax.Array, *context: jax.Array | None) -> jax.Array:
    """Attention with the positions of a feature map as tokens: (b, h, w, c) -> (b, h, w, c)."""
    return attention(rearrange(x, "b h w c -> b (h w) c"), *context).reshape(x.shape)
