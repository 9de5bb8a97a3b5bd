"""From tensors to pictures, by public names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lightning_vfs
from lightning_vfs import VFSConfig, sample_grid, save_png, to_image
from lightning_vfs.core import ConfigError, DataError, EncoderConfig


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_and_a_grid_are_pictures(channels: int, tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 2 * channels * 6).reshape(2, channels, 2, 3)
    picture = to_image(images[0])
    assert (picture.mode, picture.size) == ({1: "L", 3: "RGB"}[channels], (3, 2))
    levels = np.asarray(picture).reshape(2, 3, channels).transpose(2, 0, 1)
    assert np.array_equal(levels, np.rint((images[0].numpy().astype(float) + 1) * 127.5))
    grid = sample_grid(None, images[None])
    save_png(grid, str(tmp_path / "new" / "grid.png"))
    save_png(images[0], tmp_path / "image.png")
    assert np.array_equal(Image.open(tmp_path / "new" / "grid.png"), grid.movedim(0, -1))
    assert np.array_equal(Image.open(tmp_path / "image.png"), picture)
    assert {"sample_grid", "save_png", "to_image"} <= set(lightning_vfs.__all__)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 4), (2, 4, 4)])
def test_what_is_no_image_is_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"\(c, h, w\) with 1 or 3 channels; got the shape"):
        to_image(torch.zeros(shape))


def test_a_model_loads_its_support(tiny_model, image_folder: Path) -> None:
    model, folder = tiny_model(), image_folder / "class00"
    support = model.load_support(folder)
    assert support.shape == (5, 3, 8, 8) and support.min() >= -1 and support.max() <= 1
    assert torch.equal(support, model.load_support(str(folder))) and not torch.equal(
        support, model.load_support(folder, seed=1)
    )
    assert torch.equal(model.load_support([folder / "1.png"]), model.load_support(folder / "1.png"))
    assert to_image(model.sample(support, num_images=1, steps=2)[0]).size == (8, 8)


def test_plain_values_for_a_configuration_are_pointed_to_from_dict() -> None:
    with pytest.raises(
        ConfigError, match=r"VFSConfig.encoder is a dict, but must be of the class EncoderConfig.*from_dict"
    ):
        VFSConfig(encoder={"dim": 64})  # type: ignore[arg-type]
    assert VFSConfig.from_dict({"encoder": {"dim": 64}}) == VFSConfig(encoder=EncoderConfig(dim=64))
