"""Set encoders made of tokens: transformers that summarise a small set of images."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.encoder_config import EncoderConfig
from lightning_vfs.core.sets import set_mean
from lightning_vfs.modules.attention import LSA, AttentionPooling, EncoderAttention
from lightning_vfs.modules.dropout import Dropout, number_dropout
from lightning_vfs.modules.layers import (
    LAYER_NORM_EPS,
    FeedForward,
    Projection,
    TimestepMLP,
    initialize_linear,
    required_timestep,
)
from lightning_vfs.modules.noise import random_bits
from lightning_vfs.modules.spt import SPT
from lightning_vfs.training.blocks import NetworkBlock


class EncoderLayer(NetworkBlock):
    """Pre-norm transformer layer: (b, l, dim), key of the dropout (b,) -> (b, l, dim)."""

    def __init__(self, encoder: EncoderConfig, attention: type[EncoderAttention]) -> None:
        super().__init__()
        dim, dropout = encoder.dim, encoder.dropout
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = attention(dim, encoder.heads, encoder.dim_head, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = FeedForward(dim, int(dim * encoder.mlp_ratio), dropout)
        self.drop = Dropout(dropout)

    def compute(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), key)
        return x + self.drop(self.mlp(self.norm2(x), key), key)


class SetEncoder(nn.Module):
    """sViT: SPT tokens behind a class token and an optional time token, LSA transformer, pooling, head.

    Shapes: x_set (b, s, c, h, w) in [-1, 1], t int (b,) or None -> (b, d), d = `config.encoder.output_dim`; for
    denoisers that attend to tokens (b, tokens, d). s is `config.sets.slots`; with the tokenizer `per_image_mean` any
    number, and of set i the first shots[i] images count. Dropout in training follows `key`, int64 (b,).
    """

    attention: type[EncoderAttention] = LSA

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        encoder = config.encoder
        self.config = encoder
        self.gives_tokens = config.denoiser.conditioning == "lag"
        assert config.patch_dim is not None
        self.to_patch_embedding = SPT(config.patch_dim, encoder.patch_size, encoder.dim)
        self.num_patches = (config.encoder_size // encoder.patch_size) ** 2
        self.num_extra = config.num_extra_tokens
        self.cls_token = nn.Parameter(torch.empty(1, 1, encoder.dim))
        self.pos_embedding = nn.Parameter(torch.empty(1, self.num_extra + self.num_patches, encoder.dim))
        if encoder.time_token == "timestep":
            self.time_embed = TimestepMLP(encoder.dim // 4, encoder.dim)
            self.to_time_embedding = nn.Linear(encoder.dim, encoder.dim)
        self.dropout = Dropout(encoder.dropout)
        self.head_dropout = Dropout(encoder.dropout)
        self.layers = nn.ModuleList(EncoderLayer(encoder, self.attention) for _ in range(encoder.depth))
        self.head_norm = nn.LayerNorm(encoder.dim, eps=LAYER_NORM_EPS)
        self.head = self._head(encoder)
        self.projection = self._projection(encoder)
        initialize_linear(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embedding, std=0.02)
        number_dropout(self)

    def _head(self, encoder: EncoderConfig) -> nn.Module:
        if encoder.head_hidden_dim:
            return FeedForward(encoder.dim, encoder.head_hidden_dim, encoder.dropout)
        return nn.Linear(encoder.dim, encoder.dim)

    def _projection(self, encoder: EncoderConfig) -> Projection | None:
        hidden_dim = encoder.projection_hidden_dim or encoder.projection_dim
        if not encoder.projection_dim:
            return None
        return Projection(encoder.dim, hidden_dim, encoder.projection_dim, encoder.dropout)

    def forward(
        self, x_set: Tensor, t: Tensor | None = None, shots: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Context of every set; raises ValueError where the encoder sees t and gets none."""
        out = self._through_head(self.head_norm(self._pooled(x_set, t, shots, key)), key)
        out = out if out.ndim == 2 or self.gives_tokens else out.mean(dim=1)
        return out if self.projection is None else self.projection(out, key)

    def _pooled(self, x_set: Tensor, t: Tensor | None, shots: Tensor | None, key: Tensor | None) -> Tensor:
        """What the pool leaves of a set's tokens, behind the transformer: (b, dim) or (b, tokens, dim)."""
        patches = self._patch_tokens(x_set, shots)
        b = patches.shape[0]
        extra = [self.cls_token.expand(b, -1, -1)]
        if self.config.time_token != "none":
            extra.append(self._time_token(b, t))
        x = torch.cat([*(token.to(patches.dtype) for token in extra), patches], dim=1)
        x = self.dropout(x + self._positions(patches.shape[1]), key)
        return self._pool(self._transform(x, key), key)

    def _through_head(self, x: Tensor, key: Tensor | None) -> Tensor:
        # A hidden head is a feed-forward layer, with dropout in it and after it.
        return self.head_dropout(self.head(x, key), key) if self.config.head_hidden_dim else self.head(x)

    def _transform(self, x: Tensor, key: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, key)
        return x

    def _patch_tokens(self, x_set: Tensor, shots: Tensor | None) -> Tensor:
        if self.config.tokenizer == "stack":
            return self.to_patch_embedding(x_set)
        each = self._tokens_of_each(x_set)
        return set_mean(each, shots) if self.config.tokenizer == "per_image_mean" else each.mean(dim=1)

    def _tokens_of_each(self, x_set: Tensor) -> Tensor:
        """Patch tokens of every image: (b, s, c, h, w) -> (b, s, l, dim)."""
        each = self.to_patch_embedding(rearrange(x_set, "b s c h w -> (b s) 1 c h w"))
        return rearrange(each, "(b s) l d -> b s l d", s=x_set.shape[1])

    def _positions(self, num_tokens: int) -> Tensor:
        """Learned positions of the extra tokens and of `num_tokens` patch tokens: (1, extra + tokens, dim)."""
        return self.pos_embedding

    def _time_token(self, b: int, t: Tensor | None) -> Tensor:
        if self.config.time_token == "zero":
            return torch.zeros(b, 1, self.config.dim, device=self.cls_token.device)
        return self.to_time_embedding(self.time_embed(required_timestep(t)))[:, None]

    def _pool(self, x: Tensor, key: Tensor | None) -> Tensor:
        match self.config.pool:
            case "cls":
                return x[:, 0]
            case "mean":
                return x.mean(dim=1)
            case "sum":
                return x.sum(dim=1)
            case "patches":
                return x[:, self.num_extra :]
            case _:
                return x


class ViTEncoder(SetEncoder):
    """ViT over a set (Giannone et al. 2022, section 3): a transformer over the patches of all its images together.

    A patch has the same learned position in every image, so that the order of the images does not matter; slots
    without an image hold a zero image. Shapes as `SetEncoder`.
    """

    attention = EncoderAttention

    def _patch_tokens(self, x_set: Tensor, shots: Tensor | None) -> Tensor:
        return rearrange(self._tokens_of_each(x_set), "b s l d -> b (s l) d")

    def _positions(self, num_tokens: int) -> Tensor:
        extra, patches = self.pos_embedding.split([self.num_extra, self.num_patches], dim=1)
        return torch.cat([extra, patches.repeat(1, num_tokens // self.num_patches, 1)], dim=1)

    def _pool(self, x: Tensor, key: Tensor | None) -> Tensor:
        if self.config.pool != "mean_patch":
            return super()._pool(x, key)
        pooled = reduce(x[:, self.num_extra :], "b (s l) d -> b l d", "mean", l=self.num_patches)
        # The same layers once more, but not the same masks.
        return self._transform(pooled, None if key is None else random_bits(key, 1)[:, 0])


class SetTokens(SetEncoder):
    """Tokens of every image of a set: a transformer over the patches of one image at a time.

    Images meet only where they condition another: the denoiser attends to their tokens (`lag`), or a learned query does
    and leaves one vector of those that are seen (`film`). So neither their number nor their order matters, and each is
    encoded once for all images that are conditioned on it.

    Shapes: x_set (b, s, c, h, w) in [-1, 1] with any s, t int (b,) or None -> with `lag` (b, s * tokens, d), with
    `film` (b, d), or for every row of `seen`, bool (b or 1, m, s), one of the images that it sees: (b * m, d). d is
    `config.encoder.output_dim`. Dropout in training follows `key`, int64 (b, s); m is s then.
    """

    attention = EncoderAttention

    def __init__(self, config: VFSConfig) -> None:
        super().__init__(config)
        encoder = config.encoder
        self.pooling = None if self.gives_tokens else AttentionPooling(encoder.dim, encoder.heads, encoder.dim_head)
        if self.pooling is not None:
            initialize_linear(self.pooling)

    def forward(
        self, x_set: Tensor, t: Tensor | None = None, seen: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Tokens or contexts of every set; raises ValueError where the encoder sees t and gets none."""
        s = x_set.shape[1]
        images = rearrange(x_set, "b s c h w -> (b s) 1 c h w")
        t, key = None if t is None else t.repeat_interleave(s), None if key is None else key.flatten()
        x = self.head_norm(self._pooled(images, t, None, key))
        tokens = rearrange(x if x.ndim == 3 else x[:, None], "(b s) l d -> b s l d", s=s)
        x = tokens.flatten(0, 1) if self.pooling is None else self.pooling(tokens, seen).flatten(0, 1)
        x = self._through_head(x, key)
        x = x if self.projection is None else self.projection(x, key)
        return x if self.pooling is not None else rearrange(x, "(b s) l d -> b (s l) d", s=s)
