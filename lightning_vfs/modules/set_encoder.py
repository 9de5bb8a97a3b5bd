"""The set encoder sViT: a transformer that summarises a small set of images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from lightning_vfs.core.config import EncoderConfig, VFSConfig
from lightning_vfs.core.embeddings import timestep_embedding
from lightning_vfs.modules.layers import LAYER_NORM_EPS, FeedForward, Projection, TimestepMLP, initialize_linear
from lightning_vfs.modules.spt import SPT


class LSA(nn.Module):
    """Locality self-attention (Lee et al. 2021, section 3.3): no token attends to itself, the scale is learned.

    The logarithm of the scale is the parameter, as in the JAX system. (b, l, dim) -> (b, l, dim), l at least 2.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.temperature = nn.Parameter(torch.tensor(math.log(dim_head**-0.5)))
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        others = ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        # A learned scale cannot be an argument of the fused kernel, which takes a float: it goes into the queries.
        out = F.scaled_dot_product_attention(
            q * self.temperature.exp().to(q.dtype),
            k,
            v,
            attn_mask=others,
            dropout_p=self.dropout if self.training else 0.0,
            scale=1.0,
        )
        out = self.to_out(rearrange(out, "b h l d -> b l (h d)"))
        return F.dropout(out, self.dropout, self.training)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer with LSA: (b, l, dim) -> (b, l, dim)."""

    def __init__(self, dim: int, heads: int, dim_head: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = LSA(dim, heads, dim_head, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.drop(self.mlp(self.norm2(x)))


class SetEncoder(nn.Module):
    """Context of a set: SPT tokens behind a class token and an optional time token, LSA transformer, pooling, head.

    Shapes: x_set (b, s, c, h, w) in [-1, 1], t int (b,) or None -> (b, d), d = `config.encoder.output_dim`.
    s is `config.sets.slots`; with the tokenizer `per_image_mean` any number.
    """

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        encoder = config.encoder
        self.config = encoder
        self.to_patch_embedding = SPT(config.patch_dim, encoder.patch_size, encoder.dim)
        num_patches = (config.sets.image_size // encoder.patch_size) ** 2
        num_extra = 1 if encoder.time_token == "none" else 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, encoder.dim))
        self.pos_embedding = nn.Parameter(torch.empty(1, num_extra + num_patches, encoder.dim))
        if encoder.time_token == "timestep":
            self.time_embed = TimestepMLP(encoder.dim // 4, encoder.dim)
            self.to_time_embedding = nn.Linear(encoder.dim, encoder.dim)
        self.dropout = nn.Dropout(encoder.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(encoder.dim, encoder.heads, encoder.dim_head, encoder.mlp_ratio, encoder.dropout)
            for _ in range(encoder.depth)
        )
        self.head_norm = nn.LayerNorm(encoder.dim, eps=LAYER_NORM_EPS)
        self.head = self._head(encoder)
        self.projection = self._projection(encoder)
        initialize_linear(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embedding, std=0.02)

    def _head(self, encoder: EncoderConfig) -> nn.Module:
        if encoder.head_hidden_dim:
            return FeedForward(encoder.dim, encoder.head_hidden_dim, encoder.dropout)
        return nn.Linear(encoder.dim, encoder.dim)

    def _projection(self, encoder: EncoderConfig) -> nn.Module:
        hidden_dim = encoder.projection_hidden_dim or encoder.projection_dim
        if encoder.projection_dim:
            return Projection(encoder.dim, hidden_dim, encoder.projection_dim, encoder.dropout)
        return nn.Identity()

    def forward(self, x_set: Tensor, t: Tensor | None = None) -> Tensor:
        patches = self._patch_tokens(x_set)
        b = patches.shape[0]
        extra = [self.cls_token.expand(b, -1, -1)]
        if self.config.time_token != "none":
            extra.append(self._time_token(b, t))
        x = torch.cat([*(token.to(patches.dtype) for token in extra), patches], dim=1)
        x = self.dropout(x + self.pos_embedding)
        for layer in self.layers:
            x = layer(x)
        out = self.head(self.head_norm(self._pool(x)))
        if self.config.head_hidden_dim:
            out = self.dropout(out)
        # Of tokens, `film` conditioning takes the mean.
        return self.projection(out.mean(dim=1) if out.ndim == 3 else out)

    def _patch_tokens(self, x_set: Tensor) -> Tensor:
        if self.config.tokenizer == "stack":
            return self.to_patch_embedding(x_set)
        each = self.to_patch_embedding(rearrange(x_set, "b s c h w -> (b s) 1 c h w"))
        return reduce(each, "(b s) l d -> b l d", "mean", s=x_set.shape[1])

    def _time_token(self, b: int, t: Tensor | None) -> Tensor:
        if self.config.time_token == "zero":
            return torch.zeros(b, 1, self.config.dim, device=self.cls_token.device)
        if t is None:
            raise ValueError(
                "This encoder was built with time_token `timestep`: it needs the timestep t (int, shape (b,)), "
                "in training and at every sampling step."
            )
        sinusoids = timestep_embedding(t, self.config.dim // 4, torch.float32)
        return self.to_time_embedding(self.time_embed(sinusoids))[:, None]

    def _pool(self, x: Tensor) -> Tensor:
        match self.config.pool:
            case "cls":
                return x[:, 0]
            case "mean":
                return x.mean(dim=1)
            case "sum":
                return x.sum(dim=1)
            case "patches":
                return x[:, 1 if self.config.time_token == "none" else 2 :]
            case _:
                return x
