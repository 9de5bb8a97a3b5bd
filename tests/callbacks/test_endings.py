"""However a run ends, `last.ckpt` is of its last whole step, and a run resumed from it equals the uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.callbacks.endings import ERRORS, SIGNALS, Run, cut, differences, train

VALIDATING = Run(val_every=3)
HALVES = Run(accumulate=2, val_every=3)


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
        (VALIDATING, "max_time", 4, 5),
        (VALIDATING, "early_stopping", 0, 3),
        (HALVES, "max_steps", 4, 3),
        (HALVES, "max_time", 4, 2),
        *[(VALIDATING, way, 4, {"error_after_step": 5, "epoch_end_error": 7}.get(way, 4)) for way in ERRORS[:3]],
        (VALIDATING, "validation_error", 4, 6),
        (VALIDATING, "validation_end_error", 4, 6),
        (VALIDATING, "epoch_end_error", 4, 7),
        (HALVES, "error", 5, 2),
        (HALVES, "validation_error", 2, 1),
        *[(VALIDATING, way, 4, 5) for way in SIGNALS[:2]],
        (VALIDATING, "two_ctrl_c", 4, 4),
        (VALIDATING, "validation_ctrl_c", 4, 6),
        (HALVES, "ctrl_c", 4, 3),
    ],
)
def test_the_last_step_is_saved_and_resumed(straight, tmp_path: Path, run: Run, way: str, at: int, step: int) -> None:
    cut(tmp_path / "cut", run, way, at)
    last = tmp_path / "cut/last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == step
    raw, averaged = saved["current_model_state"], saved["state_dict"]
    assert step == 1 or any(not torch.equal(raw[name], averaged[name]) for name in raw)
    train(tmp_path / "resumed", run, resume=last)
    assert differences(straight[run], tmp_path / "resumed/last.ckpt") == []
