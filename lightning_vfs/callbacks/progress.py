"""One kind of progress bar, for training, validation and evaluation; in a file, a line now and then in its place."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lightning_vfs.modules.logged_steps import logs_now

SECONDS_BETWEEN_LINES = 30.0
"""Least time between two lines in a file."""

_BAR = (
    "{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n_fmt}}/{{total_fmt}} {noun} "
    "[{{elapsed}}, {{remaining}} left, {{rate_fmt}}{{postfix}}]"
)
_LINE = (
    "{{desc}}: {{n_fmt}}/{{total_fmt}} {noun} ({{percentage:.0f}}%), "
    "{{elapsed}}, {{remaining}} left, {{rate_fmt}}{{postfix}}"
)
_ENDLESS = "{{desc}}: {{n_fmt}} {noun}, {{elapsed}}, {{rate_fmt}}{{postfix}}"


class Lines:
    """What a bar shows, as plain lines: one at most every `SECONDS_BETWEEN_LINES`, and one at the end.

    It takes tqdm's arguments and has its methods, as far as they are used here.

    Args:
        leave: whether there is a line at the end.
    """

    def __init__(
        self, desc: str, total: float | None, initial: int, unit: str, bar_format: str, leave: bool, file: Any
    ) -> None:
        self.n = initial
        self._postfix = ""
        self._format = {"total": total, "initial": initial, "prefix": desc, "unit": unit, "bar_format": bar_format}
        self._leave, self._file = leave, file
        self._start = self._last = time.monotonic()

    def update(self, n: int = 1) -> None:
        """Count on."""
        self.n += n
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._write()

    def set_postfix(self, figures: dict[str, Any], refresh: bool = False) -> None:
        """What the lines end with."""
        self._postfix = ", ".join(f"{k}={tqdm.format_num(v) if _is_number(v) else v}" for k, v in figures.items())

    def close(self) -> None:
        """The line at the end."""
        if self._leave:
            self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        line = tqdm.format_meter(self.n, elapsed=self._last - self._start, postfix=self._postfix, **self._format)
        print(line, file=self._file, flush=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def progress(
    doing: str,
    total: float | None,
    noun: str,
    unit: str = "it",
    initial: int = 0,
    leave: bool = False,
    disable: bool = False,
) -> tqdm | Lines:
    """A bar on standard error where that is a terminal, else lines.

    Args:
        doing: what is done.
        total: how much there is to do; None if that is not known.
        noun: of what, in the plural.
        unit: of the rate.
        initial: how much was done before.
        leave: the bar stays when it is closed, in place of vanishing.
        disable: there is neither.
    """
    if disable:
        return tqdm(disable=True)
    terminal = sys.stderr.isatty()
    if total is not None and math.isinf(total):
        total = None
    style = _ENDLESS if total is None else _BAR if terminal else _LINE
    options: dict[str, Any] = {
        "desc": doing, "total": total, "initial": initial, "unit": unit, "leave": leave, "file": sys.stderr,
        "bar_format": style.format(noun=noun),
    }  # fmt: skip
    if not terminal:
        return Lines(**options)
    # The rate is the mean since the start, so that what is left takes validation and evaluation in.
    return tqdm(**options, smoothing=0, miniters=1, mininterval=0.2, dynamic_ncols=True)


class RunProgressBar(ProgressBar):
    """The progress of the whole run: its optimizer steps, the time that is left, seconds per step, the last figures.

    Validation, testing, prediction and evaluation have one bar each, which vanishes when it is done. They are drawn on
    standard error, and messages and warnings above them. Where standard error is no terminal, as in the log of a job,
    there is a plain line at most every 30 seconds and one at the end of training.

    Figures are those that were logged with `prog_bar=True`, as of the last step at which the trainer logs: between
    such steps no tensor is read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._training: tqdm | Lines | None = None
        self._evaluation: tqdm | Lines | None = None
        self._messages = ExitStack()
        self._logged = False

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        tqdm.write(sep.join(map(str, args)), **kwargs)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {"epoch": trainer.current_epoch, **trainer.progress_bar_metrics}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._enabled and sys.stderr.isatty():
            self._messages.enter_context(_above_bars())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        """End all bars, the one of training last and visible."""
        self._end_evaluation()
        if self._training is not None:
            self._training.close()
            self._training = None
        self._messages.close()

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        self._logged = False
        if self._enabled:
            self._training = progress("Training", _steps(trainer), "steps", initial=self._step, leave=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._training is not None:
            self._training.update(trainer.global_step - self._step)
            self._step = trainer.global_step
            self._logged = self._logged or logs_now(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        # Figures are complete only after all callbacks and the module have seen the end of a batch.
        if self._logged:
            self._logged = False
            self._show_figures(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show_figures(trainer, pl_module)
        self._close()

    def _show_figures(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._training is not None:
            self._training.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)

    # -- validation, testing, prediction -----------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            self._begin_evaluation("Sanity check", trainer.num_sanity_val_batches)
        else:
            self._begin_evaluation("Validation", trainer.num_val_batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_evaluation("Testing", trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_evaluation("Predicting", trainer.num_predict_batches)

    def _begin_evaluation(self, doing: str, batches: list[int | float]) -> None:
        if self._enabled:
            self._left = sum(batches)
            self._evaluation = progress(doing, self._left, "batches")

    def on_validation_batch_end(self, *_: Any) -> None:
        self._count_batch()

    def on_test_batch_end(self, *_: Any) -> None:
        self._count_batch()

    def on_predict_batch_end(self, *_: Any) -> None:
        self._count_batch()

    def _count_batch(self) -> None:
        if self._evaluation is not None:
            self._evaluation.update()
            self._left -= 1
            if not self._left:  # before other callbacks show what they do at the end of an epoch
                self._end_evaluation()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_evaluation()
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._show_figures(trainer, pl_module)

    def on_test_end(self, *_: Any) -> None:
        self._end_evaluation()

    def on_predict_end(self, *_: Any) -> None:
        self._end_evaluation()

    def _end_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None


def _steps(trainer: pl.Trainer) -> float | None:
    """Optimizer steps of the whole run, those before a resume included; None if it is not known."""
    try:
        steps = trainer.estimated_stepping_batches
    except MisconfigurationException:  # accumulation that changes over epochs
        steps = trainer.max_steps
    return steps if steps > 0 else None


@contextmanager
def _above_bars() -> Iterator[None]:
    """Lightning's messages and Python's warnings are written above the bars of a terminal, and not into them."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    show = warnings.showwarning

    def showwarning(*args: Any, **kwargs: Any) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            show(*args, **kwargs)

    # A logger without a handler passes its messages on to Python's root logger, which is the user's.
    with logging_redirect_tqdm([logger for logger in loggers if logger.handlers]):
        warnings.showwarning = showwarning
        try:
            yield
        finally:
            warnings.showwarning = show
