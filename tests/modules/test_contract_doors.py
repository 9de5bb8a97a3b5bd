"""Every door by which weights, configuration and data meet, over the contract's whole table.

Each cell ends in silence, in one warning, or in the named error: never in one of torch, einops or a dictionary.
"""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lightning_vfs import VFSDDPM, SetDataModule, SetSizeMismatchError, VFSConfig
from lightning_vfs.core import StaleSetSizeWarning
from lightning_vfs.core.contract import with_set_size
from lightning_vfs.data import ClassImages
from tests.conftest import tiny_config

FOLDER = Path(tempfile.mkdtemp())


class RandomSets(SetDataModule):
    """Ten classes of eight random images."""

    def load(self) -> ClassImages:
        shape = (80, self.channels, self.image_size, self.image_size)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return ClassImages(torch.from_numpy(pixels), [f"class{i}" for i in range(10)], np.repeat(np.arange(10), 8))


def data_of(config: VFSConfig, set_size: int) -> RandomSets:
    return RandomSets(
        set_size, config.sets.image_size, config.sets.channels, batch_size=2, sets_per_epoch=2, eval_sets=2,
        split_fractions=(0.6, 0.2, 0.2),
    )  # fmt: skip


def trainer(max_steps: int = 2) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=max_steps, logger=False, enable_checkpointing=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=1, use_distributed_sampler=False,
    )  # fmt: skip


@functools.cache
def checkpoint_of(config: VFSConfig) -> Path:
    path = FOLDER / f"{len(list(FOLDER.iterdir()))}.ckpt"
    run = trainer(max_steps=1)
    run.fit(VFSDDPM(config), datamodule=data_of(config, config.sets.set_size))
    run.save_checkpoint(path)
    return path


def stale(checkpoint: Path, config: VFSConfig) -> Path:
    """The checkpoint with the configuration stated otherwise."""
    contents = torch.load(checkpoint, weights_only=True)
    contents["hyper_parameters"]["config"] = config.to_dict()
    path = FOLDER / "stale.ckpt"
    torch.save(contents, path)
    return path


def through_trainer(stage: str, checkpoint: Path, configured: VFSConfig, data: int) -> None:
    getattr(trainer(), stage)(VFSDDPM(configured), datamodule=data_of(configured, data), ckpt_path=str(checkpoint))


def through_load(checkpoint: Path, configured: VFSConfig, data: int) -> None:
    model = VFSDDPM.load_from_checkpoint(stale(checkpoint, configured))
    trainer().fit(model, datamodule=data_of(configured, data))


def through_plain_loader(checkpoint: Path, configured: VFSConfig, data: int) -> None:
    model = VFSDDPM.load_from_checkpoint(stale(checkpoint, configured))
    image = (configured.sets.channels, configured.sets.image_size, configured.sets.image_size)
    trainer().fit(model, DataLoader([torch.zeros(data, *image)] * 4, batch_size=2))


def through_pretrained(checkpoint: Path, configured: VFSConfig, data: int) -> None:
    """A folder whose config.json is stale; the support holds what a set of the data leaves for one."""
    VFSDDPM.load_from_checkpoint(checkpoint).save_pretrained(FOLDER / "model")
    (FOLDER / "model" / "config.json").write_text(json.dumps(configured.to_dict()))
    model = VFSDDPM.from_pretrained(FOLDER / "model")
    shots = with_set_size(configured, data).sets.shots
    image = (configured.sets.channels, configured.sets.image_size, configured.sets.image_size)
    model.sample(torch.zeros(shots, *image), num_images=1, steps=2)


DOORS = {
    "fit": functools.partial(through_trainer, "fit"),
    "validate": functools.partial(through_trainer, "validate"),
    "test": functools.partial(through_trainer, "test"),
    "load_from_checkpoint": through_load,
    "plain loader": through_plain_loader,
    "from_pretrained": through_pretrained,
}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    door=st.sampled_from(list(DOORS)),
    weights=st.integers(2, 8),
    configured=st.integers(2, 8),
    data=st.integers(2, 8),
    held_out=st.sampled_from(["zero_slot", "drop", "none"]),
    tokenizer=st.sampled_from(["stack", "stack", "per_image_mean"]),
    patch_size=st.sampled_from([2, 4]),
    channels=st.sampled_from([1, 3]),
)
def test_every_cell_at_every_door(
    door: str, weights: int, configured: int, data: int, held_out: str, tokenizer: str, patch_size: int, channels: int
) -> None:
    config = tiny_config(
        weights,
        sets={"held_out": held_out, "channels": channels, "set_size": weights},
        encoder={"tokenizer": tokenizer, "patch_size": patch_size},
    )
    checkpoint = checkpoint_of(config)
    stacked = tokenizer == "stack"
    # A support may be smaller than k, so from_pretrained takes the supports of smaller sets.
    refused = stacked and (data > weights if door == "from_pretrained" else data != weights)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            DOORS[door](checkpoint, with_set_size(config, configured), data)
            assert not refused
        except SetSizeMismatchError as error:
            assert refused, str(error)
    said = [w for w in caught if w.category is StaleSetSizeWarning]
    at_the_door = door in ("load_from_checkpoint", "plain loader", "from_pretrained")
    expected = stacked and configured != weights and (at_the_door or not refused)
    assert len(said) == expected, [str(w.message) for w in said]


@pytest.mark.parametrize(
    ("encoder", "sizes"), [({"tokenizer": "per_image_mean"}, range(2, 13)), ({"architecture": "set_tokens"}, (2, 9))]
)
def test_one_checkpoint_without_slots_trains_and_samples_with_sets_of_any_size(encoder: dict, sizes: range) -> None:
    config = tiny_config(6, encoder=encoder)
    checkpoint = checkpoint_of(config)
    image = (config.sets.channels, config.sets.image_size, config.sets.image_size)
    for set_size in sizes:
        model = VFSDDPM.load_from_checkpoint(checkpoint)
        trainer().fit(model, DataLoader([torch.zeros(set_size, *image)] * 4, batch_size=2))
        assert model.sample(torch.zeros(set_size, *image), num_images=1, steps=2).shape == (1, *image)
