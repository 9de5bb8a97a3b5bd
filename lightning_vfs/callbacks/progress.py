"""RunProgressBar: one bar for the whole run, and one each for validation, testing and prediction."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lightning_vfs.core.progress import Lines, on_terminal, progress
from lightning_vfs.training.logged_steps import logs_now, total_steps


class RunProgressBar(ProgressBar):
    """The progress of the whole run: its optimizer steps, the time that is left, seconds per step, the last figures.

    Validation, testing, prediction and evaluation have one bar each, which vanishes when it is done. They are drawn on
    standard error, and messages and warnings above them. If standard error is not a terminal, as in the log of a job,
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
        with tqdm.external_write_mode(file=kwargs.get("file")):
            print(*args, sep=sep, **kwargs)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {"epoch": trainer.current_epoch, **trainer.progress_bar_metrics}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._enabled and on_terminal():
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
            self._training = progress("Training", total_steps(trainer), "steps", initial=self._step, leave=True)

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
