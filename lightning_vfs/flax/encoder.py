"""The set encoder sViT in Flax: a transformer that summarises a small set of images."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn

from lightning_vfs.core.config import EncoderConfig, VFSConfig
from lightning_vfs.core.patches import stack_patches
from lightning_vfs.flax.layers import FeedForward, LayerNorm


class LSA(nn.Module):
    """Locality self-attention (Lee et al. 2021, section 3.3): no token attends to itself, the scale is learned.

    The logarithm of the scale is the parameter. (b, l, dim) -> (b, l, dim), l at least 2.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        heads, dim_head = self.config.heads, self.config.dim_head
        drop = nn.Dropout(self.config.dropout, deterministic=deterministic)
        temperature = self.param("temperature", nn.initializers.constant(math.log(dim_head**-0.5)), ())
        qkv = nn.Dense(3 * heads * dim_head, use_bias=False)(x)
        q, k, v = rearrange(qkv, "b l (three h d) -> three b h l d", three=3, h=heads)
        scores = jnp.einsum("bhid,bhjd->bhij", q * jnp.exp(temperature), k)
        itself = jnp.eye(x.shape[1], dtype=bool)
        attention = drop(nn.softmax(jnp.where(itself, -jnp.inf, scores)))
        out = rearrange(jnp.einsum("bhij,bhjd->bhid", attention, v), "b h l d -> b l (h d)")
        return drop(nn.Dense(self.config.dim)(out))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer with LSA: (b, l, dim) -> (b, l, dim)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        dim = self.config.dim
        x = x + LSA(self.config)(LayerNorm()(x), deterministic)
        feed_forward = FeedForward(dim, int(dim * self.config.mlp_ratio), self.config.dropout)
        return x + feed_forward(LayerNorm()(x), deterministic)


class Transformer(nn.Module):
    """Layers `layer_0`, `layer_1`, ...: (b, l, dim) -> (b, l, dim)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        for i in range(self.config.depth):
            x = TransformerLayer(self.config, name=f"layer_{i}")(x, deterministic)
        return x


class SPT(nn.Module):
    """Patches of a set's images stacked as channels, LayerNorm, projection: (b, s, c, h, w) -> (b, l, dim)."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_set: jax.Array) -> jax.Array:
        patches = stack_patches(x_set, self.config.patch_size)
        return nn.Dense(self.config.dim, name="proj")(LayerNorm(name="norm")(patches))


class SetEncoder(nn.Module):
    """Set encoder up to its head; the time embedding before it and the projection after it are modules of their own.

    Shapes: x_set (b, s, c, h, w) in [-1, 1], time (b, dim) or None -> (b, dim), or (b, l, dim) where the pool gives
    tokens. s is `config.sets.slots`; with the tokenizer `per_image_mean` any number.
    """

    config: VFSConfig

    @nn.compact
    def __call__(self, x_set: jax.Array, time: jax.Array | None = None, deterministic: bool = True) -> jax.Array:
        encoder = self.config.encoder
        drop = nn.Dropout(encoder.dropout, deterministic=deterministic)
        x = jnp.concatenate([*self._extra_tokens(x_set.shape[0], time), self._patch_tokens(x_set)], axis=1)
        num_tokens = (self.config.sets.image_size // encoder.patch_size) ** 2 + self._num_extra
        x = drop(x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, num_tokens, encoder.dim)))
        x = Transformer(encoder, name="transformer")(x, deterministic)
        x = LayerNorm(name="mlp_norm")(self._pool(x))
        if encoder.head_hidden_dim:
            head = FeedForward(encoder.dim, encoder.head_hidden_dim, encoder.dropout, name="mlp_head_ff")
            return head(x, deterministic)
        return nn.Dense(encoder.dim, name="mlp_dense")(x)

    @property
    def _num_extra(self) -> int:
        """Tokens before those of the patches."""
        return 1 if self.config.encoder.time_token == "none" else 2

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

    def _patch_tokens(self, x_set: jax.Array) -> jax.Array:
        embed = SPT(self.config.encoder, name="to_patch_embedding")
        if self.config.encoder.tokenizer == "stack":
            return embed(x_set)
        each = embed(rearrange(x_set, "b s c h w -> (b s) 1 c h w"))
        return reduce(each, "(b s) l d -> b l d", "mean", s=x_set.shape[1])

    def _pool(self, x: jax.Array) -> jax.Array:
        match self.config.encoder.pool:
            case "cls":
                return x[:, 0]
            case "mean":
                return x.mean(axis=1)
            case "sum":
                return x.sum(axis=1)
            case "patches":
                return x[:, self._num_extra :]
            case _:
                return x
