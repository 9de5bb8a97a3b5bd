"""Attention layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lightning_vfs.modules.layers import LAYER_NORM_EPS


class Attention(nn.Module):
    """Multi-head self-attention: (b, l, dim) -> (b, l, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
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

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = rearrange(self.q(self.norm(x)), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(self.kv(self.context_norm(context)), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)"))


class EncoderAttention(nn.Module):
    """Multi-head self-attention with heads of any width: (b, l, dim) -> (b, l, dim)."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        out = self._attend(q, k, v, self.dropout if self.training else 0.0)
        return F.dropout(self.to_out(rearrange(out, "b h l d -> b l (h d)")), self.dropout, self.training)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


class LSA(EncoderAttention):
    """Locality self-attention (Lee et al. 2021, section 3.3): no token attends to itself, the scale is learned.

    The logarithm of the scale is the parameter, as in the JAX system. (b, l, dim) -> (b, l, dim), l at least 2.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout)
        self.temperature = nn.Parameter(torch.tensor(math.log(dim_head**-0.5)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        others = ~torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
        # A learned scale cannot be an argument of the fused kernel, which takes a float: it goes into the queries.
        q = q * self.temperature.exp().to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=others, dropout_p=dropout, scale=1.0)
