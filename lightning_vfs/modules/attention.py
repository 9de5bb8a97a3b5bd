"""Attention layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_vfs.modules.dropout import Dropout
from lightning_vfs.modules.layers import LAYER_NORM_EPS
from lightning_vfs.modules.set_context import SetContext, attend_to_context, tokens_of


class Attention(nn.Module):
    """Multi-head self-attention: (b, l, dim) -> (b, l, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        q, k, v = rearrange(self.qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)"))


class CrossAttention(nn.Module):
    """Normalised tokens attend to the normalised tokens of a context: (b, l, dim), (b, m, context_dim) -> (b, l, dim).

    As the attention to text of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, section 3.3).
    """

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.context_norm = nn.LayerNorm(context_dim, eps=LAYER_NORM_EPS)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m context_dim"] | SetContext
    ) -> Float[Tensor, "b l d"]:
        q = rearrange(self.q(self.norm(x)), "b l (h d) -> b h l d", h=self.heads)
        tokens = self.context_norm(tokens_of(context))
        k, v = rearrange(self.kv(tokens), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        return self.out(attend_to_context(q, k, v, context))


class AttentionPooling(nn.Module):
    """Vectors of the tokens of a set by attention of one learned query, each of the tokens of some images.

    Pooling by multihead attention with one seed (Lee et al. 2019, arXiv 1810.00825, section 3.2). At first all tokens
    weigh alike.

    Shapes: tokens (b, s, l, dim), seen bool (b or 1, m, s), whether a vector is made of an image -> (b, m, dim).
    """

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(heads, dim_head))
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(
        self, tokens: Float[Tensor, "b s l dim"], seen: Bool[Tensor, "#b m s"] | None = None
    ) -> Float[Tensor, "b m dim"]:
        """One vector of all images (m = 1) without `seen`."""
        b, _, length, _ = tokens.shape
        heads = len(self.query)
        k, v = rearrange(self.to_kv(tokens), "b s l (two h d) -> two b h (s l) d", two=2, h=heads)
        m, mask = (1, None) if seen is None else (seen.shape[1], seen.repeat_interleave(length, dim=-1)[:, None])
        q = self.query.to(k.dtype)[None, :, None].expand(b, -1, m, -1)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h m d -> b m (h d)"))


class EncoderAttention(nn.Module):
    """Multi-head self-attention with heads of any width: (b, l, dim), key of the dropout (b,) -> (b, l, dim)."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.weight_drop = Dropout(dropout)
        self.to_out = nn.Linear(heads * dim_head, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Float[Tensor, "b l d"], key: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b l d"]:
        q, k, v = rearrange(self.to_qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        out = self._attend(q, k, v, key)
        return self.drop(self.to_out(rearrange(out, "b h l d -> b l (h d)")), key)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, key: Tensor | None) -> Tensor:
        return self._attention(q, k, v, None, None, key)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, key: Tensor | None
    ) -> Tensor:
        """Scaled dot-product attention; fused, except with dropout, for which the kernels draw by themselves."""
        if not self.training or not self.weight_drop.dropped_levels:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        return self.weight_drop(logits.softmax(dim=-1).to(v.dtype), key) @ v


class LSA(EncoderAttention):
    """Locality self-attention (Lee et al. 2021, section 3.3): no token attends to itself, the scale is learned.

    The logarithm of the scale is the parameter, as in the JAX system. (b, l, dim) -> (b, l, dim), l at least 2.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout)
        # (1,) and not a scalar, which FSDP cannot shard
        self.temperature = nn.Parameter(torch.tensor([math.log(dim_head**-0.5)]))
        self.register_load_state_dict_pre_hook(_scalar_temperature)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, key: Tensor | None) -> Tensor:
        others = ~torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
        # A learned scale cannot be an argument of the fused kernel, which takes a float: it goes into the queries.
        return self._attention(q * self.temperature.exp().to(q.dtype), k, v, others, 1.0, key)


def _scalar_temperature(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Take weights of 0.1.0, in which the temperature is a scalar."""
    name = f"{prefix}temperature"
    if name in state_dict:
        state_dict[name] = state_dict[name].reshape(1)
