"""The model of configs/glyphs.yaml: torch and JAX end at the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.flax import FlaxVFSDDPM

CONFIG = Path(__file__).parents[2] / "configs" / "glyphs.yaml"


def test_ddim_50_from_one_noise_ends_within_a_thousandth() -> None:
    settings = yaml.safe_load(CONFIG.read_text())
    data, config = settings["data"]["init_args"], settings["model"]["config"]
    sets = {name: data[name] for name in ("set_size", "image_size", "channels")} | config["sets"]
    torch.manual_seed(0)
    model = VFSDDPM(VFSConfig.from_dict(config | {"sets": sets})).eval()
    with torch.no_grad():  # the output layers of a fresh model are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    support = torch.rand(5, 1, 16, 16) * 2 - 1
    in_torch = model.sample(support, num_images=6, steps=50)
    in_jax = FlaxVFSDDPM.from_torch(model).sample(support.numpy(), num_images=6, steps=50)
    assert in_torch.std() > 0.1
    np.testing.assert_allclose(np.asarray(in_jax), in_torch.numpy(), atol=1e-3)
