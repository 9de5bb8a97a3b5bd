"""The pipeline of diffusers: the same pictures as the model's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from lightning_vfs import VFSDDPM
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.data import load_support
from lightning_vfs.data.pictures import to_uint8
from lightning_vfs.interop.diffusers_pipeline import to_diffusers

LAG = {"encoder": {"pool": "patches", "context_dropout": 0.1}, "denoiser": {"conditioning": "lag"}}


@pytest.fixture(autouse=True)
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pipeline.py is copied to a folder of this test."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(["red", "navy"]):
        Image.new("RGB", (20, 12), colour).save(folder / f"{i}.png")
    return folder


def loaded(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("parts", [{}, LAG], ids=["film", "lag"])
def test_a_pipeline_gives_the_models_images(parts: dict, tiny_model, photos: Path, tmp_path: Path) -> None:
    model = tiny_model(**parts)
    to_diffusers(model, tmp_path / "pipe")
    pipeline = loaded(tmp_path / "pipe")
    guidance = {"guidance_scale": 2.0} if parts else {}
    how = {"num_images": 3, "seed": 5, **guidance}
    support = load_support(photos, 8, 3)
    expected = model.sample(support, steps=4, sampler="ddpm", **how)
    options = {"num_inference_steps": 4, "sampler": "ddpm", "batch_size": 2, **how}
    for given in (support, photos, [Image.open(photos / name) for name in ("0.png", "1.png")]):
        torch.testing.assert_close(pipeline(given, output_type="pt", **options).images, (expected + 1) / 2)
    pictures = pipeline(support, **options, return_dict=False)[0]
    exact = to_uint8(model.sample(support, steps=4, sampler="ddpm", batch_size=2, **how))
    assert np.array_equal([np.asarray(picture) for picture in pictures], exact.permute(0, 2, 3, 1).numpy())
    assert np.asarray(pipeline(support, output_type="np", **options).images).shape == (3, 8, 8, 3)


def test_a_pipeline_that_is_saved_again_is_the_same(tiny_model, tmp_path: Path) -> None:
    model = tiny_model(encoder={"architecture": "none"})
    to_diffusers(model, tmp_path / "pipe")
    assert VFSDDPM.from_pretrained(tmp_path / "pipe" / "model").config == model.config
    to_diffusers(loaded(tmp_path / "pipe").model.model, tmp_path / "again")
    (first, second) = (
        loaded(tmp_path / name)(num_images=2, num_inference_steps=2).images for name in ("pipe", "again")
    )
    assert np.array_equal(first, second)


def test_wrong_options_are_refused(tiny_model, tmp_path: Path) -> None:
    to_diffusers(tiny_model(), tmp_path / "pipe")
    pipeline = loaded(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="output_type is 'jpg'"):
        pipeline(torch.zeros(1, 3, 8, 8), output_type="jpg")
    with pytest.raises(ConfigError, match="guidance"):
        pipeline(torch.zeros(1, 3, 8, 8), guidance_scale=2.0)
