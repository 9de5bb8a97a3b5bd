"""Whether a configuration from a file fits the weights that came with it, before its network takes memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lightning_vfs.core.checks import is_path
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import CheckpointError
from lightning_vfs.core.trust import reading
from lightning_vfs.modules.few_shot_diffusion import FewShotDiffusion

SLACK = 2**20
"""Parameters that a configuration may declare in excess: its set size, which the weights override, may be larger."""


def check_declared_size(config: VFSConfig, weights: Mapping[str, Any], source: object) -> None:
    """Refuse a configuration whose network is much larger than the weights, tensors or arrays by their names.

    Raises:
        CheckpointError: it declares more layers or parameters, or no network can be built from it.
    """
    encoder, denoiser = config.encoder, config.denoiser
    if is_path(encoder.architecture) or is_path(denoiser.architecture):
        return  # code that the user has imported
    found = sum(math.prod(value.shape) for value in weights.values())
    layers = sum(
        part.depth if part.architecture != "unet" else part.num_res_blocks * len(part.channel_mult)
        for part in (encoder, denoiser)
        if part.architecture not in ("class_label", "none")
    )
    positions = (config.padded_size // denoiser.patch_size) ** 2 * denoiser.dim if denoiser.architecture == "dit" else 0
    declared = positions
    if layers <= len(weights) and positions <= 4 * found + SLACK:
        with reading(source), torch.device("meta"):
            declared = sum(parameter.numel() for parameter in FewShotDiffusion(config).parameters())
    if layers > len(weights) or declared > 4 * found + SLACK:
        raise CheckpointError(
            f"The configuration in {source} declares {layers:,} layers and {declared:,} parameters or positions, but "
            f"there are {len(weights):,} tensors of {found:,} numbers: it belongs to other weights, or is damaged."
        )
