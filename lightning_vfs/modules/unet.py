"""The UNet (Dhariwal and Nichol 2021, arXiv 2105.05233), as a denoiser and, by half, as an encoder of sets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.sets import set_mean
from lightning_vfs.core.unet import EMBEDDING_RATIO
from lightning_vfs.modules.dropout import number_dropout
from lightning_vfs.modules.layers import FeedForward, Projection, TimestepMLP, initialize_zero, required_timestep
from lightning_vfs.modules.noise import random_bits
from lightning_vfs.modules.set_context import Context, SetContext
from lightning_vfs.modules.unet_blocks import BlockOptions, HalfUNet, UpLevel, group_norm, initialize_residuals


class UNet(HalfUNet):
    """Denoiser: x_t (b, c, h, w), t int (b,), context -> (b, c or 2c, h, w).

    The context is (b, d) with `film` conditioning, where it modulates the blocks together with the timestep;
    (b, tokens, d), or one that images share, with `lag`, where cross-attention follows every self-attention; None for
    the unconditional baseline.
    Dropout in training follows `key`, int64 (b,).
    """

    def __init__(self, config: VFSConfig) -> None:
        unet, context_dim = config.denoiser, config.encoder.context_dim
        lag = unet.conditioning == "lag"
        embedding_dim = EMBEDDING_RATIO * unet.channels
        options = BlockOptions(
            embedding_dim=embedding_dim,
            scale_shift_norm=unet.scale_shift_norm,
            resblock_updown=unet.resblock_updown,
            dropout=unet.dropout,
            heads=unet.heads,
            context_dim=context_dim if lag else 0,
        )
        super().__init__(unet, config.denoiser_channels, config.denoiser_size, options)
        self.config = unet
        self.time_embed = TimestepMLP(unet.channels, embedding_dim)
        self.timestep_scale = 1000 / config.diffusion.timesteps if config.diffusion.rescale_timesteps else 1
        self.context_proj: nn.Linear | None = None
        if context_dim and not lag:
            time_dim = embedding_dim if unet.film == "concat" else 0
            self.context_proj = nn.Linear(time_dim + context_dim, embedding_dim)
        self.up = nn.ModuleList(self._up_levels(options))
        self.norm_out = group_norm(self.widths[0])
        self.conv_out = nn.Conv2d(self.widths[0], config.out_channels, 3, padding=1)
        self._initialize()
        number_dropout(self)

    def _up_levels(self, options: BlockOptions) -> list[UpLevel]:
        """Levels of rising resolution, smallest maps first; one block more than on the way down, for what went in."""
        levels, skip_dims, dim = [], list(self.feature_widths), self.widths[-1]
        for level in reversed(range(len(self.widths))):
            in_dims = []
            for _ in range(self.config.num_res_blocks + 1):
                in_dims.append(dim + skip_dims.pop())
                dim = self.widths[level]
            levels.append(UpLevel(in_dims, dim, self.attends[level], "up" if level else None, options))
        return levels

    def _initialize(self) -> None:
        """Zero at the end of every residual branch and of all; elsewhere torch's own, as guided-diffusion has it."""
        initialize_residuals(self)
        initialize_zero(self.conv_out)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Num[Tensor, " b"],
        context: Float[Tensor, "b *tokens d"] | SetContext | None,
        key: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b outputs h w"]:
        context = None if context is None else context.to(self.conv_in.weight.dtype)
        embedding = self._embedding(t, context)
        *skips, x = self.features(x_t, embedding, context, key)
        for level in self.up:
            x = level(x, skips, embedding, context, key)
        return self.conv_out(F.silu(self.norm_out(x)))

    def _embedding(self, t: Tensor, context: Context | None) -> Tensor:
        """(b, 4 * channels), of the timestep and, with `film`, of the context."""
        time = self.time_embed(t.float() * self.timestep_scale)
        if self.context_proj is None:
            return time
        assert isinstance(context, Tensor), "this denoiser is conditioned on a context"
        if self.config.film == "add":
            return time + self.context_proj(context)
        return self.context_proj(torch.cat([time, context.to(time.dtype)], dim=-1))


class UNetEncoder(HalfUNet):
    """Context of a set: half a UNet sees every image, a head of the mean over the set makes the context.

    Shapes: x_set (b, s, c, h, w) in [-1, 1] with any s, t int (b,) or None, shots int (b,) or None -> (b, d), or with
    `lag` conditioning (b, tokens, d), d = `config.encoder.output_dim`. Of every set the first `shots` images count,
    1 to s; without it all. Dropout in training follows `key`, int64 (b,).

    With time_token `timestep` the blocks are modulated by the timestep of the noisy image, scale and shift; without
    it they have no embedding. Blocks change the resolution in either case, as in few-shot diffusion models' encoder,
    which is modulated by timesteps drawn at random.
    """

    def __init__(self, config: VFSConfig) -> None:
        encoder = config.encoder
        timed = encoder.time_token == "timestep"
        options = BlockOptions(
            embedding_dim=EMBEDDING_RATIO * encoder.channels if timed else 0,
            scale_shift_norm=True,
            resblock_updown=True,
            dropout=encoder.dropout,
            heads=encoder.heads,
        )
        super().__init__(encoder, config.encoder_channels, config.encoder_size, options)
        self.config = encoder
        self.gives_tokens = config.denoiser.conditioning == "lag"
        self.time_embed = TimestepMLP(encoder.channels, options.embedding_dim) if timed else None
        self.head_norm = group_norm(self.widths[-1])
        self.head = nn.Linear(self.widths[-1], encoder.dim)
        self.head_mlp: FeedForward | None = None
        if encoder.head_hidden_dim:
            self.head_mlp = FeedForward(encoder.dim, encoder.head_hidden_dim, encoder.dropout)
        self.projection: Projection | None = None
        if encoder.projection_dim:
            hidden_dim = encoder.projection_hidden_dim or encoder.projection_dim
            self.projection = Projection(encoder.dim, hidden_dim, encoder.projection_dim, encoder.dropout)
        initialize_residuals(self)
        number_dropout(self)

    def forward(
        self, x_set: Tensor, t: Tensor | None = None, shots: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Context of every set; raises ValueError where the encoder sees t and gets none."""
        s, embedding = x_set.shape[1], self._embedding(t)
        if embedding is not None:
            embedding = embedding.repeat_interleave(s, dim=0)
        of_images = None if key is None else random_bits(key, s).flatten()
        smallest = self.features(x_set.flatten(0, 1), embedding, None, of_images)[-1]
        positions = rearrange(F.silu(self.head_norm(smallest)), "(b s) c h w -> b s (h w) c", s=s)
        # The head is linear, so that the means may come before it, at less cost.
        pooled = positions.mean(dim=2) if self.config.pool == "mean" else positions
        out = self.head(set_mean(pooled, shots))
        out = out if self.head_mlp is None else self.head_mlp(out, key)
        # Of tokens, `film` conditioning takes the mean.
        out = out if out.ndim == 2 or self.gives_tokens else out.mean(dim=1)
        return out if self.projection is None else self.projection(out, key)

    def _embedding(self, t: Tensor | None) -> Tensor | None:
        """(b, 4 * channels) of the timestep, for an encoder that sees it."""
        if self.time_embed is None:
            return None
        return self.time_embed(required_timestep(t))
