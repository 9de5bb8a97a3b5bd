"""Latents that are encoded once: the same training, and what they are known by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.core.config import DenoiserConfig, DiffusionConfig, EncoderConfig, LatentConfig, SetConfig
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.data.cache import DamagedCacheWarning
from lightning_vfs.modules.latent import Autoencoder
from lightning_vfs.modules.latent_cache import cached_latents
from lightning_vfs.training.optimizer import OptimizerConfig
from tests.callbacks.conftest import Patterns
from tests.modules.autoencoder import SCALE, save_autoencoder

FLIP = [{"class_path": "torchvision.transforms.v2.RandomHorizontalFlip"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTNING_VFS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("autoencoder") / "vae"
    save_autoencoder(path)
    return path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that go through the autoencoder from now on."""
    counts: list[int] = []
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: counts.append(len(x)) or encode(self, x))
    return counts


def model(folder: Path, encoder_input: str = "images", **options: Any) -> VFSDDPM:
    pl.seed_everything(0)
    config = VFSConfig(
        sets=SetConfig(set_size=4, image_size=8, channels=1),
        encoder=EncoderConfig(dim=8, depth=1, heads=1, dim_head=8, patch_size=2),
        denoiser=DenoiserConfig(dim=16, depth=1, heads=2, patch_size=2),
        diffusion=DiffusionConfig(timesteps=10, clip_denoised=False),
        latent=LatentConfig(autoencoder=str(folder), downsampling=2, scale=SCALE, encoder_input=encoder_input),  # type: ignore[arg-type]
    )
    return VFSDDPM(config, OptimizerConfig(learning_rate=1e-2, warmup_steps=0), **options)


def losses(model: VFSDDPM, data: Patterns | None = None, **options: Any) -> list[float]:
    """Of every training step, and the last of validation."""
    seen: list[float] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append(float(trainer.callback_metrics["train/loss"]))

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        **quiet, accelerator="cpu", max_epochs=2, enable_model_summary=False, callbacks=[Note()], **options
    )
    trainer.fit(model, datamodule=data or Patterns())
    return [*seen, float(trainer.callback_metrics["val/loss"])]


@pytest.mark.parametrize("encoder_input", ["images", "latents"])
def test_training_is_the_same_to_the_last_bit_and_encodes_every_image_once(
    folder: Path, encoded: list[int], encoder_input: str
) -> None:
    plain = losses(model(folder, encoder_input))
    every_step = sum(encoded)
    encoded.clear()
    assert losses(model(folder, encoder_input, cache_latents="float32")) == plain
    data = Patterns()
    once = len(data.split("train")) + len(data.split("val"))
    assert once <= sum(encoded) < once + 4 * 16, "but for the padding of last batches, and one image for its shape"
    assert every_step > 0
    encoded.clear()
    again = Patterns(num_workers=1)
    assert losses(model(folder, encoder_input, cache_latents="float32"), again) == plain
    assert encoded == []


def test_bfloat16_takes_half_the_space_and_trains_nearly_the_same(folder: Path, cache: Path) -> None:
    plain = losses(model(folder, cache_latents="float32"))
    whole = {file: file.stat().st_size for file in cache.glob("latents-*.safetensors")}
    half = losses(model(folder, cache_latents="bfloat16"))
    others = [file.stat().st_size for file in cache.glob("latents-*.safetensors") if file not in whole]
    assert 0.4 < sum(others) / sum(whole.values()) < 0.65
    assert half != plain
    assert half == pytest.approx(plain, rel=0.02)


def test_augmented_images_are_encoded_in_every_step_and_validated_from_the_cache(
    folder: Path, encoded: list[int], cache: Path
) -> None:
    plain = losses(model(folder), Patterns(augmentation=FLIP))
    encoded.clear()
    assert losses(model(folder, cache_latents="float32"), Patterns(augmentation=FLIP)) == plain
    assert encoded.count(16) >= 8
    assert len(list(cache.glob("latents-*.safetensors"))) == 1
    with pytest.raises(ConfigError, match="changed by augmentation"):
        Patterns(augmentation=FLIP).use_latents("train", [])  # type: ignore[arg-type]


def test_other_weights_and_other_images_have_latents_of_their_own(folder: Path, cache: Path, tmp_path: Path) -> None:
    def files() -> int:
        losses(model(place, cache_latents="float32"), data, limit_train_batches=1, limit_val_batches=1)
        return len(list(cache.glob("latents-*.safetensors")))

    place, data = folder, Patterns()
    assert files() == 2
    data = Patterns(noise=21)
    assert files() == 4
    vae = save_autoencoder(tmp_path / "other")
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1.5)
    vae.save_pretrained(tmp_path / "other")
    place, data = tmp_path / "other", Patterns()
    assert files() == 6


def test_an_interrupted_encoding_goes_on_and_a_damaged_file_is_made_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder, split = model(folder).autoencoder, Patterns().split("train")
    assert autoencoder is not None
    encode, calls = Autoencoder.encode, []

    def latents() -> torch.Tensor:
        rows = cached_latents(autoencoder, split, cache, "float32", torch.device("cpu"), 16, lambda _: None)
        return rows[np.arange(len(split))]

    def stopping(self: Autoencoder, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, x)

    monkeypatch.setattr(Autoencoder, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        latents()
    found = latents()
    assert len(calls) == 4 + 1 + (len(split) - 2 * 16 + 15) // 16
    monkeypatch.setattr(Autoencoder, "encode", encode)
    assert torch.allclose(found, autoencoder.encode(split.float(np.arange(len(split)))), atol=1e-5)
    (file,) = cache.glob("latents-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\2")
    with pytest.warns(DamagedCacheWarning):
        assert torch.equal(latents(), found)


def test_what_it_is_not_for_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache_latents is 'half'; allowed: 'float32', 'bfloat16'"):
        model(folder, cache_latents="half")
    with pytest.raises(ConfigError, match="but this model diffuses pixels"):
        VFSDDPM(VFSConfig(), cache_latents="float32")
    sets = torch.zeros(4, 4, 1, 8, 8)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(ConfigError, match="the trainer has no SetDataModule"):
        trainer.fit(model(folder, cache_latents="float32"), torch.utils.data.DataLoader(sets, batch_size=2))  # type: ignore[arg-type]
