"""Checkpoints that earlier versions have written: their weights, the average of these, and how training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.core.config import VFSConfig
from tests.reference.checkpoints.make import ADDED, CONFIG, RUNS, write_images

FOLDER = CONFIG.parent
AVERAGED = ("ema_callback", "weight_averaging")


def stored(name: str) -> dict[str, Any]:
    return torch.load(FOLDER / f"{name}.ckpt", weights_only=True)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("part", ["state_dict", "current_model_state"])
@pytest.mark.parametrize("name", AVERAGED)
def test_the_average_is_loaded_or_the_weights_themselves(name: str, part: str, tmp_path: Path) -> None:
    checkpoint, path = stored(name), FOLDER / f"{name}.ckpt"
    assert not equal(checkpoint["state_dict"], checkpoint["current_model_state"])
    raw = part == "current_model_state"
    assert equal(VFSDDPM.load_from_checkpoint(path, raw=raw).state_dict(), checkpoint[part])
    flags = [f"--ckpt_path={path}", f"--out={tmp_path / part}", f"--raw={str(raw).lower()}"]
    assert main(["convert", *flags]) == 0
    assert equal(VFSDDPM.from_pretrained(tmp_path / part).state_dict(), checkpoint[part])


def test_a_pretrained_folder_is_loaded() -> None:
    model = VFSDDPM.from_pretrained(FOLDER / "pretrained")
    checkpoint = stored("ema_callback")
    assert equal(model.state_dict(), checkpoint["state_dict"])
    assert model.config == VFSConfig.from_dict(checkpoint["hyper_parameters"]["config"])


def test_a_class_conditional_model_knows_its_classes() -> None:
    model, checkpoint = VFSDDPM.load_from_checkpoint(FOLDER / "class_conditional.ckpt"), stored("class_conditional")
    assert equal(model.state_dict(), checkpoint["state_dict"])
    assert model.class_names == tuple(checkpoint["class_names"]) and len(model.class_names) == 4


class Start(Callback):
    """Where training has started, the last time."""

    step: int
    weights: dict[str, Tensor]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Start.step = trainer.global_step
        Start.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.mark.parametrize("name", [*AVERAGED, "class_conditional"])
def test_training_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"))
    Path("run.yaml").write_text(RUNS["ema_callback" if name in AVERAGED else name])
    Path("start.yaml").write_text(ADDED.format(f"{__name__}.Start", "{}"))
    configs = [f"--config={path}" for path in (CONFIG, "run.yaml", "start.yaml")]
    assert main(["fit", *configs, f"--ckpt_path={FOLDER / name}.ckpt", "--trainer.max_steps=4"]) == 0
    assert not [warning for warning in recwarn if "Please add the following callbacks" in str(warning.message)]
    before, after = stored(name), torch.load("checkpoints/last.ckpt", weights_only=True)
    assert Start.step == before["global_step"] == 2
    assert equal(Start.weights, before["current_model_state" if name in AVERAGED else "state_dict"])
    assert after["global_step"] == 4
    moments, moved = (each["optimizer_states"][0]["state"] for each in (before, after))
    assert {int(state["step"]) for state in moved.values()} == {4}
    assert any(not torch.equal(moments[i]["exp_avg"], moved[i]["exp_avg"]) for i in moments)
    if name in AVERAGED:
        updates = [int(each["averaging_state"]["n_averaged"]) for each in (before, after)]
        assert updates[1] == updates[0] + 2
