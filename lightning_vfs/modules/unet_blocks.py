"""The parts of a UNet as guided-diffusion has it (Dhariwal and Nichol 2021, arXiv 2105.05233)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lightning_vfs.core.config import EncoderConfig
from lightning_vfs.core.denoiser_config import DenoiserConfig
from lightning_vfs.core.unet import norm_groups
from lightning_vfs.modules.dropout import Dropout
from lightning_vfs.modules.layers import LAYER_NORM_EPS, initialize_zero
from lightning_vfs.modules.set_context import Context, attend_to_context, tokens_of
from lightning_vfs.training.blocks import NetworkBlock

Direction = Literal["down", "up"]


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a UNet have in common.

    Args:
        embedding_dim: width of the embedding that modulates the residual blocks; 0 for blocks without one.
        scale_shift_norm: the embedding scales and shifts the normalised features; else it is added before the norm.
        resblock_updown: residual blocks change the resolution; else convolutions do.
        dropout: probability of dropout in every residual block.
        heads: attention heads.
        context_dim: width of the context's tokens, to which cross-attention attends; 0 for none.
    """

    embedding_dim: int
    scale_shift_norm: bool
    resblock_updown: bool
    dropout: float
    heads: int
    context_dim: int = 0


class HalfUNet(nn.Module):
    """What a UNet does up to its smallest feature maps: a convolution, levels of falling resolution, and the middle.

    Args:
        part: widths, blocks and attention of the levels.
        in_channels: channels of the images.
        size: height of the images in pixels.
        options: of all blocks.
    """

    is_convolutional = True
    """It is faster in the memory format `channels_last` on CUDA."""

    def __init__(
        self, part: EncoderConfig | DenoiserConfig, in_channels: int, size: int, options: BlockOptions
    ) -> None:
        super().__init__()
        self.widths = [part.channels * mult for mult in part.channel_mult]
        self.attends = [size >> level in part.attention_resolutions for level in range(len(self.widths))]
        self.conv_in = nn.Conv2d(in_channels, self.widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.feature_widths = [self.widths[0]]
        for level, width in enumerate(self.widths):
            blocks, last = part.num_res_blocks, level == len(self.widths) - 1
            in_dims = [self.feature_widths[-1]] + [width] * (blocks - 1)
            self.down.append(DownLevel(in_dims, width, self.attends[level], None if last else "down", options))
            self.feature_widths += [width] * (blocks if last else blocks + 1)
        self.middle = nn.ModuleList(Block(width, width, attends, options) for attends in (True, False))

    def features(
        self, x: Tensor, embedding: Tensor | None, context: Context | None, key: Tensor | None
    ) -> list[Tensor]:
        """Feature maps of an image (b, c, h, w): after the first convolution, every block and every halving.

        The last has gone through the middle too, so that the list holds one more than there are `feature_widths`.
        Dropout in training follows `key`, int64 (b,).
        """
        features = [self.conv_in(x.to(self.conv_in.weight.dtype))]
        for level in self.down:
            features += level(features[-1], embedding, context, key)
        x = features[-1]
        for block in self.middle:
            x = block(x, embedding, context, key)
        return [*features, x]


class Level(nn.Module):
    """The blocks of one resolution, one for every entry of `in_dims`, and what changes the resolution, if anything."""

    def __init__(
        self, in_dims: Sequence[int], dim: int, attends: bool, direction: Direction | None, options: BlockOptions
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(in_dim, dim, attends, options) for in_dim in in_dims)
        self.resample: nn.Module | None = None
        if direction:
            by_block = options.resblock_updown
            self.resample = ResBlock(dim, dim, options, direction) if by_block else Resample(dim, direction)


class DownLevel(Level):
    """x (b, c, h, w), embedding (b, e), context (b, tokens, d) -> maps after every step, the last halved."""

    def forward(self, x: Tensor, embedding: Tensor | None, context: Context | None, key: Tensor | None) -> list[Tensor]:
        features = []
        for block in self.blocks:
            x = block(x, embedding, context, key)
            features.append(x)
        return features if self.resample is None else [*features, self.resample(x, embedding, key)]


class UpLevel(Level):
    """x (b, c, h, w), and a skipped map (b, skip, h, w) for every block -> (b, dim, 2h, 2w), at the last level h, w.

    The maps are taken off the end of the list `skips`.
    """

    def forward(
        self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Context | None, key: Tensor | None
    ) -> Tensor:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding, context, key)
        return x if self.resample is None else self.resample(x, embedding, key)


class Block(NetworkBlock):
    """A residual block, then self-attention and, with a context, cross-attention.

    x (b, in_dim, h, w), embedding (b, e), context (b, tokens, d) -> (b, dim, h, w).
    """

    def __init__(self, in_dim: int, dim: int, attends: bool, options: BlockOptions) -> None:
        super().__init__()
        self.res = ResBlock(in_dim, dim, options)
        self.attn = SelfAttention2d(dim, options.heads) if attends else None
        crosses = attends and options.context_dim
        self.cross_attn = CrossAttention2d(dim, options.heads, options.context_dim) if crosses else None

    def compute(self, x: Tensor, embedding: Tensor | None, context: Context | None, key: Tensor | None) -> Tensor:
        x = self.res(x, embedding, key)
        if self.attn is not None:
            x = self.attn(x)
        return x if self.cross_attn is None else self.cross_attn(x, context)


class ResBlock(nn.Module):
    """Two convolutions with a skip, modulated by an embedding (b, e): (b, in_dim, h, w) -> (b, dim, h', w').

    h' and w' are h and w, or half or twice of them in a direction.
    """

    def __init__(self, in_dim: int, dim: int, options: BlockOptions, direction: Direction | None = None) -> None:
        super().__init__()
        self.scale_shift_norm = options.scale_shift_norm
        self.act = nn.SiLU()
        self.norm1 = group_norm(in_dim)
        self.resize = _resize(direction)
        self.conv1 = nn.Conv2d(in_dim, dim, 3, padding=1)
        modulation_dim = 2 * dim if options.scale_shift_norm else dim
        self.modulation = nn.Linear(options.embedding_dim, modulation_dim) if options.embedding_dim else None
        self.norm2 = group_norm(dim)
        self.drop = Dropout(options.dropout)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.skip = nn.Identity() if in_dim == dim else nn.Conv2d(in_dim, dim, 1)

    def forward(self, x: Tensor, embedding: Tensor | None, key: Tensor | None) -> Tensor:
        hidden = self.conv1(self.resize(self.act(self.norm1(x))))
        hidden = self._modulated_norm(hidden, embedding)
        return self.skip(self.resize(x)) + self.conv2(self.drop(self.act(hidden), key))

    def _modulated_norm(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        if self.modulation is None:
            return self.norm2(x)
        modulation = rearrange(self.modulation(self.act(embedding)), "b d -> b d 1 1")
        if not self.scale_shift_norm:
            return self.norm2(x + modulation)
        scale, shift = modulation.chunk(2, dim=1)
        return self.norm2(x) * (1 + scale) + shift


class SelfAttention2d(nn.Module):
    """Positions of a feature map attend to each other, with a skip: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = rearrange(self.qkv(tokens), "b l (three n d) -> three b n l d", three=3, n=self.heads)
        out = rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)")
        return x + _to_map(self.out(out), x)


class CrossAttention2d(nn.Module):
    """Positions attend to the context (b, tokens, context_dim), with a skip: (b, dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(dim)
        self.context_norm = nn.LayerNorm(context_dim, eps=LAYER_NORM_EPS)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        positions = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q = rearrange(self.q(positions), "b l (n d) -> b n l d", n=self.heads)
        tokens = self.context_norm(tokens_of(context))
        k, v = rearrange(self.kv(tokens), "b l (two n d) -> two b n l d", two=2, n=self.heads)
        return x + _to_map(self.out(attend_to_context(q, k, v, context)), x)


class Resample(nn.Module):
    """A convolution that halves or doubles the resolution: (b, dim, h, w) -> (b, dim, h', w')."""

    def __init__(self, dim: int, direction: Direction) -> None:
        super().__init__()
        down = direction == "down"
        self.resize = nn.Identity() if down else _resize("up")
        self.conv = nn.Conv2d(dim, dim, 3, stride=2 if down else 1, padding=1)

    def forward(self, x: Tensor, embedding: Tensor | None, key: Tensor | None) -> Tensor:
        return self.conv(self.resize(x))


def group_norm(dim: int) -> nn.GroupNorm:
    """GroupNorm of `norm_groups(dim)` groups."""
    return nn.GroupNorm(norm_groups(dim), dim)


def initialize_residuals(module: nn.Module) -> None:
    """Zero what ends every residual branch, so that all blocks start as identities or their skips."""
    for layer in module.modules():
        if isinstance(layer, ResBlock):
            initialize_zero(layer.conv2)
        elif isinstance(layer, SelfAttention2d | CrossAttention2d):
            initialize_zero(layer.out)


def _resize(direction: Direction | None) -> nn.Module:
    """Without parameters: means of 2 x 2 pixels (down), each pixel four times (up), or nothing."""
    match direction:
        case "down":
            return nn.AvgPool2d(2)
        case "up":
            return nn.Upsample(scale_factor=2, mode="nearest")
        case _:
            return nn.Identity()


def _to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(b, h * w, c) -> (b, c, h, w), h and w those of another map."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=like.shape[-2])
