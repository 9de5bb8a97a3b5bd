"""Contexts in Flax: of a class, and the random ones of variational few-shot diffusion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from lightning_vfs.core.categorical import gumbel_softmax, most_likely, uniform_kl_bits
from lightning_vfs.core.config import EncoderConfig, VFSConfig
from lightning_vfs.core.gaussian import standard_gaussian_kl_bits


class ClassContext(nn.Module):
    """One learned context for every training class: labels int (b,) -> (b, dim)."""

    config: VFSConfig

    @nn.compact
    def __call__(self, label: jax.Array) -> jax.Array:
        shape = (self.config.encoder.num_classes, self.config.encoder.dim)
        return self.param("table", nn.initializers.normal(1.0), shape)[label]


class GaussianContext(nn.Module):
    """Posterior over the context, given the encoder's: (..., d) -> mean and log-variance, (..., dim) each."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        dim = self.config.context_dim
        hidden = nn.silu(nn.Dense(dim)(context))
        mean, log_variance = jnp.split(nn.Dense(2 * dim)(hidden), 2, axis=-1)
        return mean, log_variance

    def draw(self, context: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A context of the posterior by standard normal noise, (b, ..., dim), and its KL to N(0, I) in bits, (b,)."""
        mean, log_variance = self(context)
        return mean + jnp.exp(0.5 * log_variance) * noise, standard_gaussian_kl_bits(mean, log_variance)

    def mode(self, context: jax.Array) -> jax.Array:
        """The posterior's mean: (b, ..., d) -> (b, ..., dim)."""
        return self(context)[0]


class DiscreteContext(nn.Module):
    """Codes in a learned codebook, given the encoder's context: (..., d) -> logits (..., groups, entries).

    A context is made of `codebook_groups` codes, each an entry of dim / groups features.
    """

    config: EncoderConfig

    def setup(self) -> None:
        groups, entries, dim = self.config.codebook_groups, self.config.codebook_size, self.config.dim
        self.logits = nn.Dense(groups * entries)
        self.codebook = self.param("codebook", nn.initializers.normal(1.0), (groups, entries, dim // groups))

    def __call__(self, context: jax.Array) -> jax.Array:
        return rearrange(self.logits(context), "... (g e) -> ... g e", g=self.config.codebook_groups)

    def draw(self, context: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A relaxed draw by uniform noise, (b, ..., dim), and the KL to uniform codes in bits, (b,)."""
        logits = self(context)
        return self._embed(gumbel_softmax(logits, noise, self.config.gumbel_temperature)), uniform_kl_bits(logits)

    def mode(self, context: jax.Array) -> jax.Array:
        """Context of the most likely codes: (b, ..., d) -> (b, ..., dim)."""
        return self._embed(most_likely(self(context)))

    def _embed(self, weights: jax.Array) -> jax.Array:
        codes = jnp.einsum("...ge,ged->...gd", weights, self.codebook)
        return rearrange(codes, "... g d -> ... (g d)")
