"""Attention layers in Flax."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from lightning_vfs.core.config import EncoderConfig
from lightning_vfs.flax.layers import LayerNorm, dropout


class CrossAttention(nn.Module):
    """Normalised tokens attend to the normalised tokens of a context: (b, l, dim), (b, m, context_dim) -> (b, l, dim).

    As the attention to text of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, section 3.3).
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        dim, heads = x.shape[-1], self.heads
        q = rearrange(nn.Dense(dim, name="q")(self._norm(x)), "b l (h d) -> b l h d", h=heads)
        kv = nn.Dense(2 * dim, name="kv")(LayerNorm(name="context_norm")(context))
        k, v = rearrange(kv, "b m (two h d) -> two b m h d", two=2, h=heads)
        return nn.Dense(dim, name="out")(rearrange(nn.dot_product_attention(q, k, v), "b l h d -> b l (h d)"))

    def _norm(self, x: jax.Array) -> jax.Array:
        return LayerNorm(name="norm")(x)


class EncoderAttention(nn.Module):
    """Multi-head self-attention with heads of any width: (b, l, dim) -> (b, l, dim)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        heads, dim_head = self.config.heads, self.config.dim_head
        drop = dropout(self, self.config.dropout)
        qkv = nn.Dense(3 * heads * dim_head, use_bias=False)(x)
        q, k, v = rearrange(qkv, "b l (three h d) -> three b h l d", three=3, h=heads)
        attention = drop(nn.softmax(self._scores(q, k)))
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attention, v), "b h l d -> b l (h d)")
        return drop(nn.Dense(self.config.dim)(out))

    def _scores(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """Scaled products of queries and keys: (b, h, l, d) twice -> (b, h, l, l)."""
        return jnp.einsum("bhid,bhjd->bhij", q * self.config.dim_head**-0.5, k)


class LSA(EncoderAttention):
    """Locality self-attention (Lee et al. 2021, section 3.3): no token attends to itself, the scale is learned.

    The logarithm of the scale is the parameter. (b, l, dim) -> (b, l, dim), l at least 2.
    """

    def _scores(self, q: jax.Array, k: jax.Array) -> jax.Array:
        log_scale = nn.initializers.constant(math.log(self.config.dim_head**-0.5))
        scores = jnp.einsum("bhid,bhjd->bhij", q * jnp.exp(self.param("temperature", log_scale, ())), k)
        return jnp.where(jnp.eye(q.shape[2], dtype=bool), -jnp.inf, scores)
