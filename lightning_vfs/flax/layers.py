"""Layers that the set encoder and the denoiser share, under the JAX system's names."""

from __future__ import annotations

import functools

import jax
from flax import linen as nn

# The fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
PlainLayerNorm = functools.partial(LayerNorm, use_scale=False, use_bias=False)


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form), dropout after each: (..., in_dim) -> (..., dim)."""

    dim: int
    hidden_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        x = drop(nn.gelu(nn.Dense(self.hidden_dim)(x)))
        return drop(nn.Dense(self.dim)(x))


class MlpBlock(nn.Module):
    """Two linear layers with GELU (tanh form) and dropout between: (..., dim) -> (..., dim)."""

    hidden_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        hidden = nn.gelu(nn.Dense(self.hidden_dim)(x))
        return nn.Dense(x.shape[-1])(nn.Dropout(self.dropout)(hidden, deterministic))


class MLPProjection(nn.Module):
    """Three linear layers with GELU (tanh form) and dropout between: (..., in_dim) -> (..., dim)."""

    dim: int
    hidden_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        for _ in range(2):
            x = drop(nn.gelu(nn.Dense(self.hidden_dim)(x)))
        return nn.Dense(self.dim)(x)


class TimeEmbed(nn.Module):
    """Two linear layers with SiLU between, for sinusoids of timesteps: (b, in_dim) -> (b, dim)."""

    dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.silu(nn.Dense(self.dim)(x))
        return nn.Dense(self.dim)(hidden)


class TimestepEmbedder(TimeEmbed):
    """The denoiser's TimeEmbed."""
