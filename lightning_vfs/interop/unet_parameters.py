"""Parameters of the UNets and of their Flax twins, which keep the names: `down.0` is `down_0` there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_vfs.core.config import DenoiserConfig, EncoderConfig, VFSConfig
from lightning_vfs.interop.parameter import ParameterTable


def unet(table: ParameterTable, config: VFSConfig) -> None:
    """Of the denoiser `unet`."""
    denoiser, crosses = config.denoiser, config.denoiser.conditioning == "lag"
    rows = _Rows(table, "denoiser", "unet/params", True, denoiser.resblock_updown, crosses)
    rows.time_embed("unet/params/time_embed")
    if config.encoder.context_dim and not crosses:
        rows.dense("context_proj")
    skips = rows.half(denoiser, config.denoiser_size)
    rows.up_levels(denoiser, config.denoiser_size, skips)
    rows.norm("norm_out")
    rows.conv("conv_out")


def unet_encoder(table: ParameterTable, config: VFSConfig) -> None:
    """Of the encoder `unet`."""
    encoder, timed = config.encoder, config.encoder.time_token == "timestep"
    rows = _Rows(table, "encoder", "encoder/params", timed, True, False)
    if timed:
        rows.time_embed("time_embed/params")
    rows.half(encoder, config.encoder_size)
    rows.norm("head_norm")
    rows.dense("head")
    if encoder.head_hidden_dim:
        for i in range(2):
            table.dense(f"encoder.head_mlp.fc{i + 1}", f"encoder/params/head_mlp/Dense_{i}")


@dataclass(frozen=True)
class _Rows:
    """Rows of a table for the layers of one UNet.

    Args:
        ours, path: where it is in the state_dict, and in the JAX tree.
        modulated: its residual blocks have an embedding.
        by_block: residual blocks change the resolution; else convolutions do.
        crosses: cross-attention follows every self-attention.
    """

    table: ParameterTable
    ours: str
    path: str
    modulated: bool
    by_block: bool
    crosses: bool

    def dense(self, name: str) -> None:
        self.table.dense(*self._both(name))

    def conv(self, name: str) -> None:
        self.table.conv(*self._both(name))

    def norm(self, name: str) -> None:
        self.table.norm(*self._both(name))

    def _both(self, name: str) -> tuple[str, str]:
        """Name of a layer in the state_dict, and in the tree."""
        in_tree = re.sub(r"\.(\d)", r"_\1", name).replace(".", "/")
        return f"{self.ours}.{name}", f"{self.path}/{in_tree}"

    def time_embed(self, path: str) -> None:
        for i in range(2):
            self.table.dense(f"{self.ours}.time_embed.fc{i + 1}", f"{path}/Dense_{i}")

    def half(self, part: EncoderConfig | DenoiserConfig, size: int) -> list[int]:
        """Up to the smallest feature maps; the widths of all maps on the way, which a whole UNet comes back to."""
        widths = [part.channels * mult for mult in part.channel_mult]
        skips = [widths[0]]
        self.conv("conv_in")
        for level, width in enumerate(widths):
            in_dims = [skips[-1], *[width] * (part.num_res_blocks - 1)]
            self._level(f"down.{level}", in_dims, width, size >> level in part.attention_resolutions)
            skips += [width] * part.num_res_blocks
            if level < len(widths) - 1:
                self._resample(f"down.{level}.resample", width)
                skips.append(width)
        for i, attends in enumerate((True, False)):
            self._block(f"middle.{i}", widths[-1], widths[-1], attends)
        return skips

    def up_levels(self, denoiser: DenoiserConfig, size: int, skips: list[int]) -> None:
        """From the smallest feature maps to the largest, whose blocks see the maps of the way down too."""
        widths = [denoiser.channels * mult for mult in denoiser.channel_mult]
        dim, last = widths[-1], len(widths) - 1
        for level in reversed(range(len(widths))):
            befores = [dim, *[widths[level]] * denoiser.num_res_blocks]
            in_dims, dim = [before + skips.pop() for before in befores], widths[level]
            name = f"up.{last - level}"
            self._level(name, in_dims, dim, size >> level in denoiser.attention_resolutions)
            if level:
                self._resample(f"{name}.resample", dim)

    def _level(self, name: str, in_dims: Sequence[int], dim: int, attends: bool) -> None:
        for i, in_dim in enumerate(in_dims):
            self._block(f"{name}.blocks.{i}", in_dim, dim, attends)

    def _resample(self, name: str, dim: int) -> None:
        if self.by_block:
            self._res_block(name, dim, dim)
        else:
            self.conv(f"{name}.conv")

    def _block(self, name: str, in_dim: int, dim: int, attends: bool) -> None:
        self._res_block(f"{name}.res", in_dim, dim)
        if attends:
            self.norm(f"{name}.attn.norm")
            self.dense(f"{name}.attn.qkv")
            self.dense(f"{name}.attn.out")
        if attends and self.crosses:
            self.table.cross_attention(*self._both(f"{name}.cross_attn"))

    def _res_block(self, name: str, in_dim: int, dim: int) -> None:
        self.norm(f"{name}.norm1")
        self.conv(f"{name}.conv1")
        if self.modulated:
            self.dense(f"{name}.modulation")
        self.norm(f"{name}.norm2")
        self.conv(f"{name}.conv2")
        if in_dim != dim:
            self.conv(f"{name}.skip")
