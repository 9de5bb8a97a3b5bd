"""Runs that are interrupted at a given batch, and what tells two runs apart."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from tests.checkpoints import leaves, unequal
from tests.processes import run


class Interruption(Callback):
    """Acts before the batch of this number, counted over epochs from 0; or at the validation of this number.

    Args:
        at: number of the batch or validation.
        act: `raise` an error, or the name of a signal to send.
        where: `batch` or `validation`.
        rank: acts on this rank alone.
        to_group: send the signal to all processes of the run, in place of this one.
    """

    def __init__(self, at: int, act: str, where: str = "batch", rank: int = 0, to_group: bool = False) -> None:
        self.at, self.action, self.where, self.rank, self.to_group = at, act, where, rank, to_group
        self.validations = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._act(trainer, "batch", trainer.fit_loop.epoch_loop.total_batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._act(trainer, "validation", self.validations)
        self.validations += 1

    def _act(self, trainer: pl.Trainer, where: str, number: int) -> None:
        if (where, number, trainer.global_rank) != (self.where, self.at, self.rank):
            return
        if self.action == "raise":
            raise InterruptedError
        signum = signal.Signals[self.action]
        if not self.to_group:
            os.kill(os.getpid(), signum)
        else:
            # From outside, as a scheduler: what the run itself tells its workers is another matter.
            code = f"import os; os.killpg({os.getpgrp()}, {signum.value})"
            subprocess.run([sys.executable, "-c", code], check=True, start_new_session=True)


def in_a_process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command line with these arguments in a process of its own."""
    return run("-m", "lightning_vfs", *arguments)


def interrupted(folder: Path, at: int, act: str, **options: Any) -> str:
    """Argument that adds an Interruption to a run, by a file in the folder."""
    options |= {"at": at, "act": act}
    callback = {"class_path": f"{__name__}.Interruption", "init_args": options}
    path = folder / "interrupted.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    return f"--config={path}"


def checkpoint_of(run: Path) -> dict[str, Any]:
    """`last.ckpt` of a run's folder, as dotted names and values; without the folders that it names."""
    contents = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {name: value for name, value in leaves(contents) if "ModelCheckpoint" not in name}


def differences(run: Path, other: Path) -> list[str]:
    """Names in the last checkpoints of two runs whose values are not equal, bit for bit."""
    one, two = checkpoint_of(run), checkpoint_of(other)
    assert any("current_model_state" in name for name in one) and any("optimizer_states" in name for name in one)
    return unequal(one, two)


def logged(run: Path, from_step: int = 0) -> list[dict[str, str]]:
    """What a run has logged from a step on, in the digits that it was written with."""
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if value} for row in rows if int(row["step"]) >= from_step]
