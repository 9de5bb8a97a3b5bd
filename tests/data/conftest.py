"""Small data for the data tests: images whose pixels say which image they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vfs.data import ClassImages, SetDataModule


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests away from the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIGHTNING_VFS_CACHE", str(folder))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return folder


def numbered_images(counts: list[int], channels: int = 1, size: int = 2) -> ClassImages:
    """Classes a, b, c ... of these many images; every pixel of image i has the value i."""
    number = torch.arange(sum(counts), dtype=torch.uint8)
    images = number[:, None, None, None].expand(-1, channels, size, size).clone()
    names = [chr(ord("a") + i) if i < 26 else f"class{i}" for i in range(len(counts))]
    return ClassImages(images, names, np.repeat(np.arange(len(counts)), counts))


class NumberedSets(SetDataModule):
    """Sets of numbered images."""

    def __init__(self, counts: list[int] | None = None, **kwargs: object) -> None:
        defaults = {"set_size": 3, "image_size": 2, "channels": 1, "batch_size": 4, "sets_per_epoch": 24}
        super().__init__(**(defaults | {"eval_sets": 10} | kwargs))  # type: ignore[arg-type]
        self.counts = counts or [6, 7, 8, 9, 10] * 4
        self.loads = 0

    def load(self) -> ClassImages:
        self.loads += 1
        return numbered_images(self.counts)


@pytest.fixture
def numbered() -> Callable[..., ClassImages]:
    return numbered_images


@pytest.fixture
def numbered_sets() -> type[NumberedSets]:
    return NumberedSets


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write `{"cat/1.png": grey value or array}` below a folder, and give the folder."""

    def write(files: dict[str, int | np.ndarray], name: str = "images", size: int = 8) -> Path:
        root = tmp_path / name
        for relative, pixels in files.items():
            path = root / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            array = np.full((size, size), pixels, np.uint8) if np.isscalar(pixels) else pixels
            Image.fromarray(array).save(path)
        return root

    return write
