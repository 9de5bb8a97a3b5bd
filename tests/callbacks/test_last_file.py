"""Runs that share a folder: none writes over a file of another, and a resumed one goes on with its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vfs.training.checkpoints import AtomicCheckpointIO
from lightning_vfs.training.last_file import claim_names
from tests.callbacks.endings import Run, cut, train


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def steps_in(folder: Path) -> dict[str, int]:
    return {path.name: step_of(path) for path in sorted(folder.glob("*.ckpt"))}


def test_runs_one_after_another_keep_their_files_and_go_on_with_them(tmp_path: Path) -> None:
    cut(tmp_path, Run(), "sigterm", 1)
    cut(tmp_path, Run(), "sigterm", 3)
    assert steps_in(tmp_path) == {"last-v1.ckpt": 4, "last.ckpt": 2}
    train(tmp_path, Run(), resume=tmp_path / "last-v1.ckpt")
    assert steps_in(tmp_path) == {"last-v1.ckpt": 10, "last.ckpt": 2}
    train(tmp_path, Run(every=3), resume=tmp_path / "last.ckpt")
    assert steps_in(tmp_path) == {"last-v1.ckpt": 10, "last.ckpt": 10}


def test_a_run_from_the_checkpoint_of_another_leaves_that_alone(tmp_path: Path) -> None:
    best = {"monitor": "val/loss", "every_n_epochs": 1, "save_last": True}
    train(tmp_path, Run(), saving=[ModelCheckpoint(tmp_path, **best)])
    before = {path: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    other = Run(sampling="loss_second_moment")
    train(tmp_path, other, "max_steps", 12, tmp_path / "last.ckpt", [ModelCheckpoint(tmp_path, **best)])
    assert step_of(tmp_path / "last-v1.ckpt") == 13
    assert {path: path.read_bytes() for path in before} == before


def test_a_name_is_taken_before_the_file_is_written(tmp_path: Path) -> None:
    """Two runs that save at the same time: the second looks before the first has written."""
    trainer = Mock(is_global_zero=True)
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    trainer.strategy.reduce_boolean_decision = lambda decision, all: decision
    first, second = ModelCheckpoint(tmp_path), ModelCheckpoint(tmp_path)
    for callback in (first, second):
        claim_names(callback)
    path = str(tmp_path / "new/last.ckpt")
    assert not first.file_exists(path, trainer)
    assert second.file_exists(path, trainer)
    with pytest.raises(TypeError, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"x": (_ for _ in ())}, path)
    assert not second.file_exists(path, trainer)


def saving(**options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(**{"every_n_train_steps": 3} | options)


@pytest.mark.parametrize(
    ("callbacks", "way", "steps"),
    [
        ([saving(save_last="link")], None, {"epoch=1-step=9.ckpt": 9, "last.ckpt": 10}),
        ([saving(save_last=False)], None, {"epoch=1-step=9.ckpt": 9}),
        ([saving(save_last=False)], "error", {"epoch=0-step=3.ckpt": 3, "last.ckpt": 4}),
        ([saving()], None, {"epoch=1-step=9.ckpt": 9, "last.ckpt": 10}),
        ([saving(every_n_train_steps=5)], None, {"epoch=1-step=10.ckpt": 10}),
        ([saving(save_weights_only=True, save_last=True)], None, {"epoch=1-step=9.ckpt": 9, "last.ckpt": 9}),
        ([saving(save_weights_only=True), saving(save_last=True, save_top_k=0, every_n_train_steps=4)], None,
         {"epoch=1-step=9.ckpt": 9, "last.ckpt": 10}),
        ([], "error", {}),
        ([], "sigterm", {"last.ckpt": 5}),
    ],
    ids=["link", "false", "false, error", "unset", "unset, saved", "weights", "several", "none, error", "none, signal"],
)  # fmt: skip
def test_the_users_own_callbacks(tmp_path: Path, callbacks: list[ModelCheckpoint], way: str | None, steps: Any) -> None:
    cut(tmp_path, Run(), way, 4, callbacks)
    assert steps_in(tmp_path / "checkpoints") == steps
    assert not (tmp_path / "checkpoints/last.ckpt").is_symlink()
