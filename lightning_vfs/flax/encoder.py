"""Set encoders made of tokens, in Flax: transformers that summarise a small set of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn

from lightning_vfs.core.config import EncoderConfig, VFSConfig
from lightning_vfs.core.patches import stack_patches
from lightning_vfs.core.sets import set_mean
from lightning_vfs.flax.attention import LSA, EncoderAttention
from lightning_vfs.flax.layers import FeedForward, LayerNorm, dropout


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer: (b, l, dim) -> (b, l, dim)."""

    config: EncoderConfig
    attention: type[EncoderAttention]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dim = self.config.dim
        x = x + self.attention(self.config)(LayerNorm()(x))
        feed_forward = FeedForward(dim, int(dim * self.config.mlp_ratio), self.config.dropout)
        return x + feed_forward(LayerNorm()(x))


class Transformer(nn.Module):
    """Layers `layer_0`, `layer_1`, ...: (b, l, dim) -> (b, l, dim)."""

    config: EncoderConfig
    attention: type[EncoderAttention]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.config.depth):
            x = TransformerLayer(self.config, self.attention, name=f"layer_{i}")(x)
        return x


class SPT(nn.Module):
    """Patches of a set's images stacked as channels, LayerNorm, projection: (b, s, c, h, w) -> (b, l, dim)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_set: jax.Array) -> jax.Array:
        patches = stack_patches(x_set, self.config.patch_size)
        return nn.Dense(self.config.dim, name="proj")(LayerNorm(name="norm")(patches))


class SetEncoder(nn.Module):
    """sViT up to its head; the time embedding before it and the projection after it are modules of their own.

    Shapes: x_set (b, s, c, h, w) in [-1, 1], time (b, dim) or None -> (b, dim), or (b, tokens, dim) where the pool
    gives tokens. s is `config.sets.slots`; with the tokenizer `per_image_mean` any number, and of set i the first
    shots[i] images count.
    """

    config: VFSConfig

    attention: ClassVar[type[EncoderAttention]] = LSA

    @nn.compact
    def __call__(self, x_set: jax.Array, time: jax.Array | None, shots: jax.Array | None) -> jax.Array:
        encoder = self.config.encoder
        patches = self._patch_tokens(x_set, shots)
        x = jnp.concatenate([*self._extra_tokens(len(x_set), time), patches], axis=1)
        shape = (1, self.config.num_extra_tokens + self._num_patches, encoder.dim)
        positions = self.param("pos_embedding", nn.initializers.normal(0.02), shape)
        x = dropout(self, encoder.dropout)(x + self._positions(positions, patches.shape[1]))
        transformer = Transformer(encoder, self.attention, name="transformer")
        x = LayerNorm(name="mlp_norm")(self._pool(transformer(x), transformer))
        if encoder.head_hidden_dim:
            return FeedForward(encoder.dim, encoder.head_hidden_dim, encoder.dropout, name="mlp_head_ff")(x)
        return nn.Dense(encoder.dim, name="mlp_dense")(x)

    @property
    def _num_patches(self) -> int:
        return (self.config.encoder_size // self.config.encoder.patch_size) ** 2

    def _extra_tokens(self, b: int, time: jax.Array | None) -> list[jax.Array]:
        """Class token and, where there is one, time token: (b, 1, dim) each."""
        dim = self.config.encoder.dim
        cls_token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, dim))
        tokens = [jnp.broadcast_to(cls_token, (b, 1, dim))]
        if self.config.encoder.time_token == "zero":
            tokens.append(jnp.zeros_like(tokens[0]))
        if self.config.encoder.time_token == "timestep":
            tokens.append(nn.Dense(dim, name="to_time_embedding")(time)[:, None])
        return tokens

    def _patch_tokens(self, x_set: jax.Array, shots: jax.Array | None) -> jax.Array:
        tokenizer = self.config.encoder.tokenizer
        if tokenizer == "stack":
            return SPT(self.config.encoder, name="to_patch_embedding")(x_set)
        each = self._tokens_of_each(x_set)
        return set_mean(each, shots) if tokenizer == "per_image_mean" else each.mean(axis=1)

    def _tokens_of_each(self, x_set: jax.Array) -> jax.Array:
        """Patch tokens of every image: (b, s, c, h, w) -> (b, s, l, dim)."""
        images = rearrange(x_set, "b s c h w -> (b s) 1 c h w")
        each = SPT(self.config.encoder, name="to_patch_embedding")(images)
        return rearrange(each, "(b s) l d -> b s l d", s=x_set.shape[1])

    def _positions(self, positions: jax.Array, num_tokens: int) -> jax.Array:
        """Of the extra tokens and of `num_tokens` patch tokens: (1, extra + l, dim) -> (1, extra + num_tokens, dim)."""
        return positions

    def _pool(self, x: jax.Array, transformer: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """(b, extra + l, dim) -> (b, dim) or (b, tokens, dim); some poolings go through the transformer once more."""
        match self.config.encoder.pool:
            case "cls":
                return x[:, 0]
            case "mean":
                return x.mean(axis=1)
            case "sum":
                return x.sum(axis=1)
            case "patches":
                return x[:, self.config.num_extra_tokens :]
            case _:
                return x


class ViTEncoder(SetEncoder):
    """ViT over a set (Giannone et al. 2022, section 3): a transformer over the patches of all its images together.

    A patch has the same learned position in every image, so that the order of the images does not matter; slots
    without an image hold a zero image. Shapes as `SetEncoder`.
    """

    attention: ClassVar[type[EncoderAttention]] = EncoderAttention

    def _patch_tokens(self, x_set: jax.Array, shots: jax.Array | None) -> jax.Array:
        return rearrange(self._tokens_of_each(x_set), "b s l d -> b (s l) d")

    def _positions(self, positions: jax.Array, num_tokens: int) -> jax.Array:
        extra, patches = jnp.split(positions, [self.config.num_extra_tokens], axis=1)
        return jnp.concatenate([extra, jnp.tile(patches, (1, num_tokens // self._num_patches, 1))], axis=1)

    def _pool(self, x: jax.Array, transformer: Callable[[jax.Array], jax.Array]) -> jax.Array:
        if self.config.encoder.pool != "mean_patch":
            return super()._pool(x, transformer)
        patches = x[:, self.config.num_extra_tokens :]
        return transformer(reduce(patches, "b (s l) d -> b l d", "mean", l=self._num_patches))
