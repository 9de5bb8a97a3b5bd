"""Layers that the set encoder and the denoiser share, under the JAX system's names."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from lightning_vfs.core.embeddings import timestep_embedding

# The fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
PlainLayerNorm = functools.partial(LayerNorm, use_scale=False, use_bias=False)


def dropout(module: nn.Module, rate: float) -> nn.Dropout:
    """A layer of `module` that drops out where `apply` is given a key for "dropout", and nowhere else."""
    return nn.Dropout(rate, deterministic=not module.has_rng("dropout"))


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form), dropout after each: (..., in_dim) -> (..., dim)."""

    dim: int
    hidden_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        drop = dropout(self, self.dropout)
        x = drop(nn.gelu(nn.Dense(self.hidden_dim)(x)))
        return drop(nn.Dense(self.dim)(x))


class MlpBlock(nn.Module):
    """Two linear layers with GELU (tanh form) and dropout between: (..., dim) -> (..., dim)."""

    hidden_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(nn.Dense(self.hidden_dim)(x))
        return nn.Dense(x.shape[-1])(dropout(self, self.dropout)(hidden))


class MLPProjection(nn.Module):
    """Three linear layers with GELU (tanh form) and dropout between: (..., in_dim) -> (..., dim)."""

    dim: int
    hidden_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        drop = dropout(self, self.dropout)
        for _ in range(2):
            x = drop(nn.gelu(nn.Dense(self.hidden_dim)(x)))
        return nn.Dense(self.dim)(x)


class TimeEmbed(nn.Module):
    """Two linear layers with SiLU between, on sinusoids of timesteps: t int or float (b,) -> (b, dim)."""

    in_dim: int
    dim: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        sinusoids = timestep_embedding(jnp.asarray(t), self.in_dim, jnp.float32)
        hidden = nn.silu(nn.Dense(self.dim)(sinusoids))
        return nn.Dense(self.dim)(hidden)


class TimestepEmbedder(TimeEmbed):
    """The denoiser's TimeEmbed."""
