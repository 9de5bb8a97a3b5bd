"""A tiny autoencoder to diffuse in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

SCALE = 0.5


def save_autoencoder(folder: Path, **changes: Any) -> Any:
    """Write a tiny random AutoencoderKL that halves the images' sides, and return it."""
    diffusers = pytest.importorskip("diffusers", reason="install the extra `test`")
    torch.manual_seed(0)
    levels = len(changes.get("block_out_channels", (8, 16)))
    vae = diffusers.AutoencoderKL(
        **{
            "latent_channels": 4,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "norm_num_groups": 4,
            "scaling_factor": SCALE,
            **changes,
        }
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(3)  # some of what it decodes is outside [-1, 1]
    vae.save_pretrained(folder)
    return vae.eval()
