"""The denoiser DiT (Peebles and Xie 2023, arXiv 2212.09748), with a set's context instead of a class label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.denoiser_config import DenoiserConfig
from lightning_vfs.core.embeddings import sincos_positions
from lightning_vfs.core.patches import unpatchify
from lightning_vfs.modules.attention import Attention, CrossAttention
from lightning_vfs.modules.dropout import Dropout, number_dropout
from lightning_vfs.modules.layers import (
    LAYER_NORM_EPS,
    FeedForward,
    TimestepMLP,
    initialize_linear,
    initialize_zero,
)
from lightning_vfs.modules.set_context import Context, SetContext
from lightning_vfs.training.blocks import NetworkBlock

TIMESTEP_FEATURES = 256


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, per sample: (b, l, d), (b, d), (b, d) -> (b, l, d)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(NetworkBlock):
    """Transformer block with adaLN-Zero: tokens (b, l, dim), condition (b, dim), key of the dropout -> (b, l, dim).

    With cross-attention, the tokens attend to the context's, (b, m, context_dim), between self-attention and
    feed-forward layers.
    """

    def __init__(self, config: DenoiserConfig, context_dim: int | None) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.attn = Attention(dim, config.heads)
        self.cross_attn = None if context_dim is None else CrossAttention(dim, config.heads, context_dim)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.mlp = FeedForward(dim, int(dim * config.mlp_ratio), config.dropout)
        self.drop = Dropout(config.dropout)
        self.cross_drop = Dropout(config.dropout)
        self.modulation = nn.Linear(dim, 6 * dim)
        self.context_scale = nn.Parameter(torch.ones(dim)) if config.normalize_condition else None

    def compute(
        self, x: Tensor, condition: Tensor, context: Context | None = None, key: Tensor | None = None
    ) -> Tensor:
        if self.context_scale is not None:
            condition = F.layer_norm(condition, condition.shape[-1:], eps=LAYER_NORM_EPS) * self.context_scale
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        x = x + self.drop(gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1)), key)
        if self.cross_attn is not None:
            x = x + self.cross_drop(self.cross_attn(x, context), key)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2), key)


class FinalLayer(nn.Module):
    """Modulated LayerNorm and projection to patches: (b, l, dim), (b, dim) -> (b, l, out_dim)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        return self.proj(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """Denoiser: x_t (b, c, h, w), t int (b,), context -> (b, c or 2c, h, w).

    The context is (b, d) for `film`, (b, tokens, d) or one that images share for `lag`, and None for an unconditional
    model. Dropout in training follows `key`, int64 (b,).
    """

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        dit, context_dim = config.denoiser, config.encoder.context_dim
        self.config = dit
        self.out_channels = config.out_channels
        self.patch_embed = nn.Conv2d(config.denoiser_channels, dit.dim, dit.patch_size, stride=dit.patch_size)
        positions = torch.from_numpy(sincos_positions(dit.dim, config.padded_size // dit.patch_size))
        self.register_buffer("pos_embed", positions[None])
        self.time_embed = TimestepMLP(TIMESTEP_FEATURES, dit.dim)
        self.timestep_scale = 1000 / config.diffusion.timesteps if config.diffusion.rescale_timesteps else 1
        self.has_film = dit.conditioning == "film" and context_dim > 0
        if self.has_film:
            self.context_proj = nn.Linear(context_dim + (dit.dim if dit.film == "concat" else 0), dit.dim)
        self.blocks = nn.ModuleList(
            DiTBlock(dit, context_dim if dit.attends_to_context(layer) else None) for layer in range(dit.depth)
        )
        self.final = FinalLayer(dit.dim, dit.patch_size**2 * self.out_channels)
        self._initialize()
        number_dropout(self)

    def _initialize(self) -> None:
        initialize_linear(self)
        initialize_zero(self.patch_embed)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(self.patch_embed.out_channels, -1))
        for layer in (self.time_embed.fc1, self.time_embed.fc2):
            nn.init.normal_(layer.weight, std=0.02)
        initialize_zero(self.final.modulation, self.final.proj)
        for module in self.modules():
            if isinstance(module, DiTBlock):
                initialize_zero(module.modulation)
            if isinstance(module, CrossAttention):
                initialize_zero(module.out)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Num[Tensor, " b"],
        context: Float[Tensor, "b *tokens d"] | SetContext | None,
        key: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b outputs h w"]:
        pad = self.config.pad
        x_t = x_t.to(self.patch_embed.weight.dtype)
        padded = F.pad(x_t, [pad] * 4) if pad else x_t
        x = rearrange(self.patch_embed(padded), "b d h w -> b (h w) d") + self.pos_embed
        context = None if context is None else context.to(self.patch_embed.weight.dtype)
        condition = self._condition(t, context)
        for block in self.blocks:
            x = block(x, condition, context, key)
        image = unpatchify(self.final(x, condition), self.config.patch_size, self.out_channels)
        return image[..., pad : image.shape[-2] - pad, pad : image.shape[-1] - pad] if pad else image

    def _condition(self, t: Tensor, context: Context | None) -> Tensor:
        time = self.time_embed(t.float() * self.timestep_scale)
        if not self.has_film:
            return time
        assert isinstance(context, Tensor), "this denoiser is conditioned on a context"
        if self.config.film == "add":
            return time + self.context_proj(context)
        return self.context_proj(torch.cat([time, context.to(time.dtype)], dim=-1))
