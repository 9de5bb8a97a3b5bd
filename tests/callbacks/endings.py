"""Tiny runs that end in different ways and are resumed, in this process, and what tells their last states apart."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_vfs import VFSDDPM, EMACallback
from lightning_vfs.callbacks import PreemptionCheckpoint
from lightning_vfs.data import ClassImages, SetDataModule
from tests.checkpoints import leaves, unequal
from tests.conftest import tiny_config

SETS = 14
STEPS = 10


class RandomSets(SetDataModule):
    """Noise of 12 classes of 6 images of 8 x 8."""

    def load(self) -> ClassImages:
        pixels = torch.randint(256, (72, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return ClassImages(pixels, [f"c{i:02d}" for i in range(12)], [i // 6 for i in range(72)])


@dataclass(frozen=True)
class Run:
    """Options of a run; an epoch has 7 batches of 2."""

    precision: str = "32-true"
    accumulate: int = 1
    val_every: int | None = None
    every: int = 4
    workers: int = 0
    batch_size: int = 2
    sampling: str = "uniform"


class EndedError(Exception):
    """What a user's code raises."""


class Ending(Callback):
    """Ends a run in one of the ways of `WAYS`, in the batch of this number or at the validation of this number."""

    def __init__(self, way: str, at: int) -> None:
        self.way, self.at, self.validations = way, at, 0

    def _act(self, trainer: pl.Trainer) -> None:
        if self.way == "max_time":
            trainer.should_stop = True  # as Timer does, in the middle of accumulation too
        elif self.way in ("sigterm", "ctrl_c", "two_ctrl_c", "validation_ctrl_c"):
            for _ in range(2 if "two" in self.way or "validation" in self.way else 1):
                os.kill(os.getpid(), signal.SIGTERM if self.way == "sigterm" else signal.SIGINT)
        else:
            raise EndedError

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.at and self.way in ("sigterm", "ctrl_c", "two_ctrl_c", "error"):
            self._act(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.at and self.way in ("max_time", "error_after_step"):
            self._act(trainer)

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx >= self.at and self.way == "error_before_step":
            self._act(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx >= self.at and self.way in ("validation_error", "validation_ctrl_c"):
            self._act(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx >= self.at and self.way == "validation_end_error":
            self._act(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx >= self.at and self.way == "epoch_end_error":
            self._act(trainer)


ERRORS = (
    "error",
    "error_before_step",
    "error_after_step",
    "validation_error",
    "validation_end_error",
    "epoch_end_error",
)
SIGNALS = ("sigterm", "ctrl_c", "two_ctrl_c", "validation_ctrl_c")
WAYS = ("max_steps", "max_epochs", "max_time", "early_stopping", *ERRORS, *SIGNALS)


def train(
    folder: Path,
    run: Run,
    way: str | None = None,
    at: int = 0,
    resume: Path | None = None,
    saving: Sequence[ModelCheckpoint] | None = None,
    more: Callback | None = None,
) -> pl.Trainer:
    """A run of `STEPS` steps, or one that ends before; its checkpoints are in the folder, or where `saving` says."""
    pl.seed_everything(0, verbose=False)
    limits: dict[str, Any] = {"max_steps": STEPS}
    if saving is None:
        saving = [ModelCheckpoint(folder, save_last=True, every_n_train_steps=run.every, save_top_k=0)]
    callbacks: list[Callback] = [
        *([Ending(way, at)] if way else []),
        EMACallback(decay=0.9),
        *saving,
        *([more] if more else []),
    ]
    if way == "max_steps":
        limits = {"max_steps": 1 + at // run.accumulate}
    elif way == "max_epochs":
        limits = {"max_steps": -1, "max_epochs": 1}
    elif way == "early_stopping":
        callbacks.append(EarlyStopping("val/loss", stopping_threshold=100.0))
    if run.val_every:
        limits["val_check_interval"] = run.val_every
    model = VFSDDPM(
        tiny_config(4, diffusion={"timestep_sampling": run.sampling}, encoder={"dropout": 0.1}),
        {"warmup_steps": 2, "decay_steps": 20},
    )
    data = RandomSets(
        4, 8, batch_size=run.batch_size, sets_per_epoch=SETS, eval_sets=4, num_workers=run.workers,
        split_fractions=(0.5, 0.25, 0.25),
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=run.precision,
        accumulate_grad_batches=run.accumulate,
        logger=False,
        callbacks=[*callbacks, PreemptionCheckpoint()],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_checkpointing=bool(saving),
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **limits,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*bf16-true keeps the weights in bfloat16")
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    return trainer


def cut(folder: Path, run: Run, way: str | None, at: int, *args: Any, **options: Any) -> None:
    """A run that ends in this way, with the exception or exit that belongs to it; other arguments as for `train`."""
    with suppress(EndedError, SystemExit):
        train(folder, run, way, at, None, *args, **options)


def state(path: Path) -> dict[str, Any]:
    """A checkpoint as dotted names and values.

    Left out are the callbacks that end a run, the files that it names, and how many batches the last validation had
    when it was saved: Lightning counts those of a validation that was complete before a resume differently.
    """
    contents = torch.load(path, weights_only=True)
    kept = {name: value for name, value in contents["callbacks"].items() if name.startswith("EMA")}
    named = leaves(contents | {"callbacks": kept})
    return {name: value for name, value in named if "val_loop.batch_progress" not in name}


def differences(path: Path, other: Path) -> list[str]:
    """Names in two checkpoints whose values are not equal, bit for bit."""
    return unequal(state(path), state(other))
