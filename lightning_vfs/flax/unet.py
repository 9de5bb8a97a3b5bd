"""The UNet in Flax (Dhariwal and Nichol 2021, arXiv 2105.05233), as a denoiser and, by half, as an encoder of sets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.sets import set_mean
from lightning_vfs.core.unet import EMBEDDING_RATIO
from lightning_vfs.flax.layers import MlpBlock, TimeEmbed
from lightning_vfs.flax.unet_blocks import BlockOptions, Conv3x3, Direction, HalfUNet, UpLevel, group_norm


class UNet(HalfUNet):
    """Denoiser: x_t (b, c, h, w), t int (b,), context -> (b, c or 2c, h, w).

    The context is (b, d) with `film` conditioning, where it modulates the blocks together with the timestep;
    (b, tokens, d) with `lag`, where cross-attention follows every self-attention; None for the unconditional baseline.
    """

    config: VFSConfig

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array, context: jax.Array | None) -> jax.Array:
        unet = self.config.denoiser
        options = BlockOptions(
            scale_shift_norm=unet.scale_shift_norm,
            resblock_updown=unet.resblock_updown,
            dropout=unet.dropout,
            heads=unet.heads,
            crosses=unet.conditioning == "lag",
        )
        embedding = self._embedding(t, context)
        *skips, x = self.features(unet, options, rearrange(x_t, "b c h w -> b h w c"), embedding, context)
        for i, mult in enumerate(reversed(unet.channel_mult)):
            attends = x.shape[1] in unet.attention_resolutions
            direction: Direction | None = "up" if i < len(unet.channel_mult) - 1 else None
            level = UpLevel(unet.channels * mult, attends, direction, options, name=f"up_{i}")
            # One block more than on the way down; the maps come back in reverse.
            skipped = [skips.pop() for _ in range(unet.num_res_blocks + 1)]
            x = level(x, skipped, embedding, context)
        x = nn.silu(group_norm(x.shape[-1], "norm_out")(x))
        return rearrange(Conv3x3(self.config.out_channels, name="conv_out")(x), "b h w c -> b c h w")

    def _embedding(self, t: jax.Array, context: jax.Array | None) -> jax.Array:
        """(b, 4 * channels), of the timestep and, with `film`, of the context."""
        unet, diffusion = self.config.denoiser, self.config.diffusion
        scale = 1000 / diffusion.timesteps if diffusion.rescale_timesteps else 1
        dim = EMBEDDING_RATIO * unet.channels
        time = TimeEmbed(unet.channels, dim, name="time_embed")(t * scale)
        if unet.conditioning == "lag" or not self.config.encoder.context_dim:
            return time
        assert context is not None
        project = nn.Dense(dim, name="context_proj")
        if unet.film == "add":
            return time + project(context)
        return project(jnp.concatenate([time, context], axis=-1))


class UNetEncoder(HalfUNet):
    """Half a UNet sees every image, a head of the mean over the set makes the context.

    The time embedding before it and the projection after it are modules of their own. Shapes: x_set (b, s, c, h, w) in
    [-1, 1] with any s, time (b, 4 * channels) or None, shots int (b,) or None -> (b, dim), or (b, tokens, dim) where
    the pool gives tokens. Of every set the first `shots` images count, 1 to s; without it all.
    """

    config: VFSConfig

    @nn.compact
    def __call__(self, x_set: jax.Array, time: jax.Array | None, shots: jax.Array | None) -> jax.Array:
        encoder, s = self.config.encoder, x_set.shape[1]
        options = BlockOptions(
            scale_shift_norm=True,
            resblock_updown=True,
            dropout=encoder.dropout,
            heads=encoder.heads,
            crosses=False,
        )
        embedding = None if time is None else jnp.repeat(time, s, axis=0)
        smallest = self.features(encoder, options, rearrange(x_set, "b s c h w -> (b s) h w c"), embedding)[-1]
        normalised = nn.silu(group_norm(smallest.shape[-1], "head_norm")(smallest))
        positions = rearrange(normalised, "(b s) h w c -> b s (h w) c", s=s)
        pooled = positions.mean(axis=2) if encoder.pool == "mean" else positions
        out = nn.Dense(encoder.dim, name="head")(set_mean(pooled, shots))
        if encoder.head_hidden_dim:
            out = MlpBlock(encoder.head_hidden_dim, encoder.dropout, name="head_mlp")(out)
        return out
