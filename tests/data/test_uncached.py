"""Images that are decoded whenever they are read."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_vfs.core.errors import DataError
from lightning_vfs.data import FolderSets
from lightning_vfs.data.image_sets import UnreadableImagesWarning

Write = Callable[..., Path]


def sets(root: Path, **options: Any) -> FolderSets:
    defaults = {"set_size": 2, "image_size": 8, "channels": 3, "sets_per_epoch": 8, "batch_size": 4, "eval_sets": 4}
    return FolderSets(str(root), **defaults | options)


@pytest.fixture
def root(image_folder: Write) -> Path:
    rng = np.random.default_rng(0)
    return image_folder(
        {f"c{i}/{j}.png": rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for i in range(10) for j in range(4)}
    )


def test_pixels_are_those_of_the_cache_and_nothing_is_written(root: Path, cache_folder: Path) -> None:
    lazy = sets(root, cache=False, turned_classes="train").split("train")
    assert not cache_folder.exists()
    kept = sets(root, turned_classes="train").split("train")
    assert torch.equal(lazy.images, kept.images)
    index = np.array([[3, 0, 3], [7, 12, 120]])
    assert torch.equal(lazy.uint8(index), kept.uint8(index)) and torch.equal(lazy.float(5), kept.float(5))
    assert lazy.uint8([]).shape == (0, 3, 8, 8)
    assert lazy.name_of(3) == kept.name_of(3)
    assert torch.equal(pickle.loads(pickle.dumps(lazy)).uint8([1, 2]), kept.uint8([1, 2]))
    with pytest.raises(IndexError):
        lazy.uint8([len(lazy)])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_cache(root: Path, num_workers: int) -> None:
    for name in ("train", "val", "test"):
        kept, lazy = (
            [batch["images"] for batch in getattr(sets(root, **options), f"{name}_dataloader")()]
            for options in ({}, {"cache": False, "num_workers": num_workers})
        )
        assert len(kept) == len(lazy) and all(map(torch.equal, kept, lazy))


def test_a_run_may_go_on_with_the_other_way(root: Path) -> None:
    assert sets(root).identity() == sets(root, cache=False).identity()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_when_it_is_met(root: Path, num_workers: int) -> None:
    for file in root.glob("*/2.png"):
        file.write_bytes(b"not a picture")
    data = sets(root, cache=False, num_workers=num_workers, set_size=4)
    with pytest.raises(DataError) as caught:
        list(data.train_dataloader())
    message = str(caught.value)
    assert "2.png cannot be read as an image" in message and "--data.on_unreadable skip" in message
    assert "Traceback" not in message


def test_images_that_cannot_be_read_are_left_out_as_from_the_cache(root: Path, cache_folder: Path) -> None:
    (root / "c1" / "2.png").write_bytes(b"not a picture")
    options = {"on_unreadable": "skip", "split_fractions": (1, 0, 0)}
    with pytest.warns(UnreadableImagesWarning, match="1 of 40 images cannot be read"):
        lazy = sets(root, cache=False, **options)
        lazy.setup()
    (file,) = cache_folder.glob("readable-*.safetensors")
    assert file.stat().st_size < 40 * 40 + 1000, "without the images"
    with pytest.warns(UnreadableImagesWarning):
        kept = sets(root, **options).split("train")
    assert torch.equal(lazy.split("train").images, kept.images) and len(kept) == 39
    assert "Left out: 1 of 40 images cannot be read" in lazy.describe()
    with pytest.warns(UnreadableImagesWarning):
        again = sets(root, cache=False, **options)
        again.setup()
    assert len(again.split("train")) == 39


def test_what_is_read_has_a_key_of_its_content(root: Path) -> None:
    keys = [sets(root, cache=cache).split("train").key for cache in (True, True, False, False)]
    assert keys[0] == keys[1] and keys[2] == keys[3] and None not in keys
    assert sets(root).split("test").key != keys[0] != sets(root, turned_classes="train").split("train").key
    (root / "c0" / "0.png").write_bytes((root / "c0" / "1.png").read_bytes())
    assert (
        sets(root, split_fractions=(1, 0, 0)).split("train").key
        != sets(root, split_fractions=(1, 0, 0), image_size=9).split("train").key
    )
    assert sets(root, cache=False).split("train").key != keys[2]
