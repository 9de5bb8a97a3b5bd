"""The denoiser DiT in Flax (Peebles and Xie 2023, arXiv 2212.09748), conditioned on a set's context."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from lightning_vfs.core.config import DenoiserConfig, VFSConfig
from lightning_vfs.core.embeddings import sincos_positions
from lightning_vfs.core.patches import unpatchify
from lightning_vfs.flax.attention import CrossAttention
from lightning_vfs.flax.layers import MlpBlock, PlainLayerNorm, TimestepEmbedder, dropout

TIMESTEP_FEATURES = 256


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x * (1 + scale) + shift, per sample: (b, l, d), (b, d), (b, d) -> (b, l, d)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class PatchEmbed(nn.Module):
    """Linear embedding of patches: (b, c, h, w) -> (b, l, dim)."""

    patch_size: int
    dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.patch_size, self.patch_size)
        patches = nn.Conv(self.dim, size, strides=size, padding="VALID")(rearrange(x, "b c h w -> b h w c"))
        return rearrange(patches, "b h w d -> b (h w) d")


class DiTBlock(nn.Module):
    """Transformer block with adaLN-Zero: tokens (b, l, dim), condition (b, dim) -> (b, l, dim).

    With cross-attention, the tokens attend to the context's, (b, m, context_dim), between self-attention and
    feed-forward layers.
    """

    config: DenoiserConfig
    crosses: bool

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, context: jax.Array | None) -> jax.Array:
        dit = self.config
        if dit.normalize_condition:
            scale = self.param("context_scale", nn.initializers.ones, (dit.dim,))
            condition = PlainLayerNorm()(condition) * scale
        modulation = nn.Dense(6 * dit.dim)(nn.silu(condition))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        attended = nn.MultiHeadDotProductAttention(dit.heads)(modulate(PlainLayerNorm()(x), shift1, scale1))
        drop = dropout(self, dit.dropout)
        x = x + drop(gate1[:, None] * attended)
        if self.crosses:
            assert context is not None
            x = x + drop(CrossAttention(dit.heads, name="cross_attn")(x, context))
        mlp = MlpBlock(int(dit.dim * dit.mlp_ratio), dit.dropout)
        return x + gate2[:, None] * mlp(modulate(PlainLayerNorm()(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated LayerNorm and projection to patches: (b, l, dim), (b, dim) -> (b, l, out_dim)."""

    out_dim: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        shift, scale = jnp.split(nn.Dense(2 * x.shape[-1])(nn.silu(condition)), 2, axis=-1)
        return nn.Dense(self.out_dim)(modulate(PlainLayerNorm()(x), shift, scale))


class DiT(nn.Module):
    """Denoiser: x_t (b, c, h, w), t int (b,), context -> (b, c or 2c, h, w).

    The context is (b, d) for `film`, (b, tokens, d) for `lag`, and None for an unconditional model.
    """

    config: VFSConfig

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, context: jax.Array | None) -> jax.Array:
        dit, pad = self.config.denoiser, self.config.denoiser.pad
        side = self.config.padded_size // dit.patch_size
        x = PatchEmbed(dit.patch_size, dit.dim)(jnp.pad(x_t, [(0, 0), (0, 0), (pad, pad), (pad, pad)]))
        # A parameter by its place in the tree, but never trained.
        x = x + jax.lax.stop_gradient(self.param("pos_embed", lambda key: sincos_positions(dit.dim, side)[None]))
        condition = self._condition(t, context)
        for layer in range(dit.depth):
            x = DiTBlock(dit, dit.attends_to_context(layer))(x, condition, context)
        patches = FinalLayer(dit.patch_size**2 * self.config.out_channels)(x, condition)
        image = unpatchify(patches, dit.patch_size, self.config.out_channels)
        return image[..., pad : image.shape[-2] - pad, pad : image.shape[-1] - pad]

    def _condition(self, t: jax.Array, context: jax.Array | None) -> jax.Array:
        dit, diffusion = self.config.denoiser, self.config.diffusion
        scale = 1000 / diffusion.timesteps if diffusion.rescale_timesteps else 1
        time = TimestepEmbedder(TIMESTEP_FEATURES, dit.dim)(t * scale)
        if dit.conditioning == "lag" or not self.config.encoder.context_dim:
            return time
        assert context is not None
        if dit.film == "add":
            return time + nn.Dense(dit.dim)(context)
        return nn.Dense(dit.dim)(jnp.concatenate([time, context], axis=-1))
