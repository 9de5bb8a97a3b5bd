"""However a run ends, `last.ckpt` is of its last whole step, and a run resumed from it equals the uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.callbacks.endings import SETS, Run, cut, differences, train

VALIDATING = Run(val_every=3)
HALVES = Run(accumulate=2, val_every=3, sampling="loss_second_moment")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[Run, Path]:
    """Last checkpoints of runs that nothing interrupts."""
    runs = {run: tmp_path_factory.mktemp("straight") for run in (VALIDATING, HALVES)}
    for run, folder in runs.items():
        train(folder, run)
    return {run: folder / "last.ckpt" for run, folder in runs.items()}


@pytest.mark.parametrize(
    ("run", "way", "at", "step"),
    [
        (VALIDATING, "max_steps", 4, 5),
        (VALIDATING, "max_epochs", 0, 7),
        (VALIDATING, "early_stopping", 0, 3),
        (VALIDATING, "error", 6, 6),
        (VALIDATING, "error_before_step", 5, 5),
        (VALIDATING, "error_after_step", 4, 5),
        (VALIDATING, "validation_error", 4, 6),
        (VALIDATING, "epoch_end_error", 4, 7),
        (VALIDATING, "two_ctrl_c", 6, 6),
        (VALIDATING, "validation_ctrl_c", 4, 6),
        (HALVES, "max_time", 0, 0),
        (HALVES, "max_time", 4, 2),
        (HALVES, "error", 5, 2),
        (HALVES, "validation_error", 2, 1),
        (HALVES, "ctrl_c", 4, 3),
    ],
)
def test_the_last_step_is_saved_and_resumed(straight, tmp_path: Path, run: Run, way: str, at: int, step: int) -> None:
    cut(tmp_path / "cut", run, way, at)
    last = tmp_path / "cut/last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == step
    raw, averaged = saved.get("current_model_state"), saved["state_dict"]
    assert step < 2 or any(not torch.equal(raw[name], averaged[name]) for name in raw)
    train(tmp_path / "resumed", run, resume=last)
    assert differences(straight[run], tmp_path / "resumed/last.ckpt") == []


class Trained(Callback):
    """Global indices of the sets that were trained on, by epoch."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[int]] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, out: Any, batch: Any, _: int
    ) -> None:
        for index in batch["index"].tolist():
            self.epochs.setdefault(index // SETS, []).append(index % SETS)


@pytest.mark.parametrize(("before", "after", "trained"), [(2, 1, 12), (2, 4, 12), (1, 5, 12), (4, 3, 14)])
def test_another_batch_size_goes_on_with_the_sets_that_are_left(
    tmp_path: Path, before: int, after: int, trained: int
) -> None:
    """Of an epoch of 14 sets none is left out but those at its end that fill no batch, and none comes twice."""
    first, second = Trained(), Trained()
    cut(tmp_path, Run(batch_size=before), "sigterm", 1, more=first)
    train(tmp_path, Run(batch_size=after), resume=tmp_path / "last.ckpt", more=second)
    assert first.epochs[0] == list(range(2 * before))
    assert first.epochs[0] + second.epochs[0] == list(range(trained))
    if after > 1:  # the 10 steps reach the next epoch, which is whole
        whole = SETS // after * after
        assert second.epochs[1] == list(range(min(whole, len(second.epochs[1]))))
        assert len(second.epochs) == 2 or len(second.epochs[1]) == whole


def test_an_epoch_whose_sets_fill_no_batch_of_the_new_size_is_over(tmp_path: Path) -> None:
    second = Trained()
    cut(tmp_path, Run(), "sigterm", 5)
    train(tmp_path, Run(batch_size=4), resume=tmp_path / "last.ckpt", more=second)
    assert list(second.epochs) == [1, 2] and second.epochs[1] == list(range(12))
