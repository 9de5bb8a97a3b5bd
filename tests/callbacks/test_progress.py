"""RunProgressBar: the whole run's steps and time, a bar or lines, and no tensor read between logged steps."""

from __future__ import annotations

import io
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import tqdm
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vfs import VFSDDPM
from lightning_vfs.callbacks import RunProgressBar
from lightning_vfs.core import progress
from lightning_vfs.evaluation.shard import RankShard
from tests.callbacks.conftest import CONFIG, Patterns


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write_to(monkeypatch: pytest.MonkeyPatch, file: io.StringIO) -> None:
    """Make a file standard error for the bars; pytest puts its own into `sys` after the fixtures."""
    for module in ("lightning_vfs.core.progress", "lightning_vfs.callbacks.progress"):
        monkeypatch.setattr(f"{module}.sys", SimpleNamespace(stderr=file))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error, a terminal."""
    terminal = Terminal()
    write_to(monkeypatch, terminal)
    return terminal


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error, a file."""
    file = io.StringIO()
    write_to(monkeypatch, file)
    return file


@pytest.fixture
def lines(file: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Lines of every step in that file."""
    monkeypatch.setattr("lightning_vfs.core.progress.SECONDS_BETWEEN_LINES", 0.0)
    return lambda: file.getvalue().splitlines()


def trainer_of(folder: Path, bar: ProgressBar, *callbacks: Callback, **options: Any) -> pl.Trainer:
    """Four batches an epoch, a validation of one batch after each."""
    options = {"max_steps": 12, "log_every_n_steps": 5, "enable_checkpointing": False} | options
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, callbacks=[bar, *callbacks], num_sanity_val_steps=0,
        use_distributed_sampler=False, enable_model_summary=False, **options,
    )  # fmt: skip


# -- reads of tensors -------------------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Steps in which a progress bar, or Lightning for one, has a number of a tensor read."""

    BY = re.compile(r"callbacks/progress|logger_connector|vfsddpm.py:on_train_batch_end")

    def __init__(self) -> None:
        super().__init__()
        self.trainer: pl.Trainer | None = None
        self.steps: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = traceback.extract_stack()
            if any(self.BY.search(f"{frame.filename}:{frame.name}") for frame in frames):
                assert self.trainer is not None
                self.steps.append(self.trainer.global_step)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bar", [RunProgressBar, TQDMProgressBar, RichProgressBar])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_tensor_is_read_between_logged_steps(
    tmp_path: Path, terminal: Terminal, bar: type[ProgressBar], accumulate: int
) -> None:
    model, seen = VFSDDPM(CONFIG), {}

    class Seen(Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            seen[trainer.global_step] = trainer.progress_bar_metrics.get("train/loss")

    with Reads() as reads:
        reads.trainer = trainer_of(tmp_path, bar(), Seen(), accumulate_grad_batches=accumulate, limit_val_batches=0)
        reads.trainer.fit(model, datamodule=Patterns())
    assert set(reads.steps) == {5, 10}
    # The loss that is shown is that of the last such step.
    assert seen[4] is None and isinstance(seen[5], float)
    assert seen[5] == seen[9] != seen[10] == seen[11]


# -- what is shown ----------------------------------------------------------------------------------------------------


def counts(lines: list[str]) -> list[str]:
    return [found[1] for line in lines if (found := re.match(r"Training: (\d+/\d+ steps)", line))]


def test_the_whole_run_is_counted(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    trainer_of(tmp_path, RunProgressBar()).fit(VFSDDPM(CONFIG), datamodule=Patterns())
    assert counts(lines()) == [f"{step}/12 steps" for step in [*range(1, 13), 12]]
    losses = [re.findall(r"train/loss=([\d.]+)", line) for line in lines() if line.startswith("Training")]
    # Each line is written at the end of a step, when what is logged at it is not yet known; the last one has all.
    assert not any(losses[:5]) and losses[5] == losses[9] != losses[10] == losses[12]
    assert "epoch=3" in lines()[-1] and "val/loss=" in lines()[-1]
    assert any(line.startswith("Validation: 1/1 batches") for line in lines())


def test_epochs_are_counted_in_steps(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    options = {"max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 2}
    trainer_of(tmp_path, RunProgressBar(), **options).fit(VFSDDPM(CONFIG), datamodule=Patterns())
    assert counts(lines()) == [f"{step}/6 steps" for step in (0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6)]


def test_accumulation_that_changes_is_counted(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    """Three epochs of four batches: one batch makes a step, then three, the last of an epoch alone."""
    changing, model = GradientAccumulationScheduler({1: 3}), VFSDDPM(CONFIG, optimizer={"warmup_steps": 0})
    trainer_of(tmp_path, RunProgressBar(), changing, max_steps=-1, max_epochs=3).fit(model, datamodule=Patterns())
    assert counts(lines())[-1] == "8/8 steps"
    assert model.lr_schedulers().lr_lambdas[0](8) == 0 < model.lr_schedulers().lr_lambdas[0](7)
    shorter = trainer_of(tmp_path, RunProgressBar(), changing, max_steps=5, max_epochs=3)
    shorter.fit(VFSDDPM(CONFIG), datamodule=Patterns())
    assert counts(lines())[-1] == "5/5 steps"


def test_a_process_without_a_console_has_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Prints(Callback):
        def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.print("Training begins.")

    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    trainer = trainer_of(tmp_path, RunProgressBar(), Prints(), max_steps=2)
    trainer.fit(VFSDDPM(CONFIG), datamodule=Patterns())
    assert trainer.global_step == 2


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    saving = ModelCheckpoint(tmp_path, filename="cut", every_n_train_steps=6)
    cut = trainer_of(tmp_path, RunProgressBar(), saving, max_steps=6, enable_checkpointing=True)
    cut.fit(VFSDDPM(CONFIG), datamodule=Patterns())
    before = len(lines())
    resumed = trainer_of(tmp_path, RunProgressBar(), max_steps=9)
    resumed.fit(VFSDDPM(CONFIG), datamodule=Patterns(), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert counts(lines()[before:]) == ["7/9 steps", "8/9 steps", "9/9 steps", "9/9 steps"]


def test_a_run_without_an_end_has_a_count(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    class Enough(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 5

    model = VFSDDPM(CONFIG, optimizer={"decay_steps": 1000})
    trainer_of(tmp_path, RunProgressBar(), Enough(), max_steps=-1, max_epochs=-1).fit(model, datamodule=Patterns())
    assert lines()[-1].startswith("Training: 5 steps, ")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in an item that a test moves."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def test_a_line_at_most_every_30_seconds(file: io.StringIO, clock: list[float]) -> None:
    bar = progress.progress("Training", 100, "steps", initial=40, leave=True)
    for _ in range(5):
        clock[0] += 20
        bar.update()
    bar.set_postfix({"train/loss": 0.51239, "epoch": 3})
    bar.close()
    assert file.getvalue().splitlines() == [
        "Training: 42/100 steps (42%), 00:40, 19:20 left, 20.00s/it",
        "Training: 44/100 steps (44%), 01:20, 18:40 left, 20.00s/it",
        "Training: 45/100 steps (45%), 01:40, 18:20 left, 20.00s/it, train/loss=0.512, epoch=3",
    ]


def test_a_bar_on_a_terminal(terminal: Terminal, clock: list[float]) -> None:
    bar = progress.progress("Training", 100, "steps", initial=40, leave=True)
    for _ in range(5):
        clock[0] += 20
        bar.update()
    assert re.search(r"\rTraining:  45%\|.*\| 45/100 steps \[01:40, 18:20 left, 20\.00s/it\]$", terminal.getvalue())
    bar.close()
    assert terminal.getvalue().endswith("\n")


def share(show: bool) -> RankShard:
    return RankShard(rank=0, world_size=1, batch_size=2, device=torch.device("cpu"), show_progress=show)


def test_the_bar_of_an_evaluation_vanishes(terminal: Terminal) -> None:
    assert np.concatenate(list(share(True).batches(6, "Evaluation: generating, test"))).tolist() == [*range(6)]
    printed = terminal.getvalue()
    assert "Evaluation: generating, test:   0%|" in printed
    assert re.search(r"\r +\r$", printed) and "\n" not in printed
    list(share(False).batches(6, "Evaluation"))
    assert terminal.getvalue() == printed


def test_a_short_evaluation_leaves_nothing_in_a_file(file: io.StringIO) -> None:
    list(share(True).batches(6, "Evaluation: generating, test"))
    assert file.getvalue() == ""


def test_warnings_are_written_above_the_bar(tmp_path: Path, terminal: Terminal) -> None:
    class Warning(Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                warnings.warn("Watch out.", stacklevel=1)

    show = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: terminal.write(f"{message}\n")
        trainer_of(tmp_path, RunProgressBar(), Warning()).fit(VFSDDPM(CONFIG), datamodule=Patterns())
    assert re.search(r"[\r\n]Watch out\.\n", terminal.getvalue())
    assert warnings.showwarning is show


def test_an_error_is_written_below_the_bar(tmp_path: Path, terminal: Terminal) -> None:
    class Failure(Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer_of(tmp_path, RunProgressBar(), Failure()).fit(VFSDDPM(CONFIG), datamodule=Patterns())
    assert re.search(r"\rTraining:  17%\|.*\| 2/12 steps \[.*\]\n$", terminal.getvalue())
