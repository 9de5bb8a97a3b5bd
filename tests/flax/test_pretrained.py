"""Folders are read without torch, under the contract of the set size."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_vfs import CheckpointError
from lightning_vfs.core import StaleSetSizeWarning
from lightning_vfs.flax import FlaxVFSDDPM
from tests.flax.models import UNET


@pytest.fixture
def folder(tiny_model, tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights) or weights, folder / "model.safetensors")


def change_config(folder: Path, part: str, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= values
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_gives_the_model_that_was_written(tiny_model, folder: Path) -> None:
    expected = FlaxVFSDDPM.from_torch(tiny_model())
    model = FlaxVFSDDPM.from_pretrained(str(folder))
    assert model.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)


def test_so_does_a_folder_of_a_model_that_the_jax_system_does_not_have(tiny_model, tmp_path: Path) -> None:
    model = tiny_model(encoder={"architecture": "class_label", "num_classes": 3, "context_dropout": 0.1}, denoiser=UNET)
    model.save_pretrained(tmp_path)
    twin = FlaxVFSDDPM.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, twin.params, FlaxVFSDDPM.from_torch(model).params)


def test_weights_win_over_a_stale_set_size(folder: Path) -> None:
    change_config(folder, "sets", set_size=5)
    with pytest.warns(StaleSetSizeWarning, match=r"sets of 5.*sets of 6"):
        assert FlaxVFSDDPM.from_pretrained(folder).config.sets.set_size == 6


def test_half_precision_weights_become_float32(folder: Path) -> None:
    change_weights(folder, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(FlaxVFSDDPM.from_pretrained(folder).params)} == {
        jnp.dtype("float32")
    }


def test_weights_that_do_not_fit_are_listed(folder: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        del weights["encoder.cls_token"]
        weights["surprise"] = torch.zeros(1)

    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=r"missing: encoder.cls_token\n  extra: surprise"):
        FlaxVFSDDPM.from_pretrained(folder)


@pytest.mark.parametrize("shape", [(7,), (16, 16)])
def test_a_misshaped_weight_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    change_weights(folder, lambda weights: weights | {"denoiser.blocks.0.attn.qkv.bias": torch.zeros(shape)})
    with pytest.raises(CheckpointError, match="does not fit|misshaped"):
        FlaxVFSDDPM.from_pretrained(folder)


def test_folders_that_are_something_else(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no folder"):
        FlaxVFSDDPM.from_pretrained(folder / "missing")
    (folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no model.safetensors.*save_pretrained"):
        FlaxVFSDDPM.from_pretrained(folder / "empty")
    change_weights(folder, lambda weights: {"a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="weights of another model"):
        FlaxVFSDDPM.from_pretrained(folder)
    (folder / "model.safetensors").write_text("hello, this is a text")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        FlaxVFSDDPM.from_pretrained(folder)
    (folder / "config.json").write_text('{"sets": {"surprise": 1}}')
    with pytest.raises(CheckpointError, match=r"config.json is not a lightning_vfs configuration.*surprise"):
        FlaxVFSDDPM.from_pretrained(folder)
