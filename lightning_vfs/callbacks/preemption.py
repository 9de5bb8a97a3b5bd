"""PreemptionCheckpoint: however a run ends, its last step is in a checkpoint, from which it resumes exactly."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vfs.core.errors import NonFiniteLossError
from lightning_vfs.core.fingerprint import differences, fingerprint_of_checkpoint
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.training.averaging import averaging_of
from lightning_vfs.training.host_flag import HostFlag
from lightning_vfs.training.last_file import claim_names, keep_last_file, model_checkpoints, save_last
from lightning_vfs.training.resuming import (
    batches_of,
    begin_next_epoch,
    recount_batches,
    remember_last_save,
    reopen_unfinished_epoch,
    repeat_validation,
    saved_step,
)

RESUME = "Resume with the same command and --ckpt_path last."


class PreemptionCheckpoint(Callback):
    """Write `last.ckpt` whenever a run ends, and end it on SIGTERM, Ctrl-C and SLURM's announcement of a job's end.

    At the end of training, by whatever limit or callback, `last.ckpt` is written once more if a ModelCheckpoint has
    `save_last`, or has not saved the last step; it holds what came after that step, such as a validation. With
    `save_last=False` in all of them it is not.

    A signal is only noted when it arrives. At the end of the next training batch that steps the optimizer, when no
    gradient is half accumulated and the model has its raw weights, all ranks write the checkpoint together, even if
    only one rank received the signal. It goes to the folder of the first ModelCheckpoint that saves whole
    checkpoints, or to `checkpoints` in the trainer's root if there is none. What is due after that step, such as a
    validation, is still done and logged, and then the run ends: the process exits with 143 (128 + 15) after SIGTERM,
    and with 130 (128 + 2) after Ctrl-C. Further signals change nothing, but a second Ctrl-C stops at once. A signal
    that arrives during a validation or an evaluation waits for its end, and for the next training step.

    After an exception, or a second Ctrl-C, the checkpoint is of the last whole step, unless the exception came while
    the optimizer changed the weights. With several processes it is not written: other ranks may be waiting for the
    one that failed.

    If the trainer's SLURMEnvironment requeues (its default), it also listens to its `requeue_signal` (SIGUSR1) and
    requeues the job as soon as the checkpoint is written: exit status 0, or 138 (128 + 10) if SLURM refused.

    No file of another run is overwritten: where `last.ckpt` is another's, this run's is `last-v1.ckpt`.

    A run resumed with this callback reproduces the uninterrupted run, whatever ended it, and wherever a ModelCheckpoint
    has saved; `resuming.py` has the cases in which Lightning alone would differ.
    """

    _whole_step: dict[str, Any] | None = None  # the fit loop's state at the end of the last one

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._signal: int | None = None
        self._exit_status: int | None = None
        self._reported: HostFlag | None = None
        self._speaks = trainer.is_global_zero
        self._requeue_signal = _requeue_signal(trainer)
        self._step = 0
        self._whole_step = None
        self._ended = False  # training is over
        self._changing = False  # the optimizer may be changing the weights
        self._resumed: str | None = None  # this run's own file that it is resumed from
        # Last, after averaging and the bookkeeping of other callbacks: their state is part of the checkpoint.
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]
        if stage == "fit":
            for callback in model_checkpoints(trainer):
                claim_names(callback)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        fit_loop = checkpoint["loops"]["fit_loop"]
        reopen_unfinished_epoch(fit_loop)
        if isinstance(getattr(trainer, "datamodule", None), SetDataModule):
            recount_batches(fit_loop, trainer.datamodule.train_dataloader(), trainer.limit_train_batches)  # type: ignore[attr-defined]
        remember_last_save(trainer, checkpoint["global_step"])
        different = []
        if isinstance(ours := getattr(pl_module, "fingerprint", None), dict):
            different = differences(fingerprint_of_checkpoint(checkpoint), ours)
        if different:
            rank_zero_info(f"{trainer.ckpt_path} is of another run: {', '.join(different)}.")
            # It keeps its files: this run's ModelCheckpoints must not take them for theirs.
            for key in [key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint")]:
                del checkpoint["callbacks"][key]
        else:
            self._resumed = None if trainer.ckpt_path is None else str(trainer.ckpt_path)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """With the position from which the run goes on: where it is, or where the last whole step ended."""
        if self._whole_step is None or trainer.global_step != self._step:
            return
        fit_loop, interrupted = checkpoint["loops"]["fit_loop"], trainer.interrupted
        half = batches_of(fit_loop) != batches_of(self._whole_step)
        if interrupted and trainer.validating and not half:
            repeat_validation(fit_loop)
        elif interrupted or half or self._ended:
            checkpoint["loops"]["fit_loop"] = self._whole_step
            checkpoint["epoch"] = self._whole_step["epoch_progress"]["current"]["completed"]

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen(trainer, signal.SIGTERM, self._requeue_signal)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = self._first_step = trainer.global_step
        interrupt = signal.SIGINT if signal.getsignal(signal.SIGINT) is signal.default_int_handler else None
        self._listen(trainer, signal.SIGTERM, self._requeue_signal, interrupt)
        if self._resumed is not None:
            keep_last_file(trainer, self._resumed)
        begin_next_epoch(trainer.fit_loop)
        self._whole_step = trainer.fit_loop.state_dict()

    def _listen(self, trainer: pl.Trainer, *signals: signal.Signals | None) -> None:
        """Replaces Lightning's handlers, which act at once; Lightning restores the previous ones."""
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("PreemptionCheckpoint cannot receive signals: Python delivers them only to the main thread.")
            return
        for signum in signals:
            if signum is not None:
                signal.signal(signum, self._note)
        # Before every batch Lightning broadcasts whether rank 0 had a SIGTERM, for which all ranks wait for the device.
        # Its handler no longer gets one, so there is nothing to broadcast.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def _note(self, signum: int, frame: Any) -> None:
        if self._signal is None:
            self._signal = signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._speaks:
                # Not by a stream, which may be in the middle of a line of its own.
                os.write(2, b"\nCtrl-C: the run is saved and ends after this step; again, and it stops at once.\n")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._changing = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._changing = False
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._whole_step = trainer.fit_loop.state_dict()
        if self._is_signalled(trainer, batch_idx):
            self._end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ended = True
        ours = [callback for callback in model_checkpoints(trainer) if not callback.save_weights_only]
        unsaved = not any(saved_step(callback) == trainer.global_step for callback in ours)
        wanted = any(c.save_last or (c.save_last is None and unsaved) for c in ours)
        if wanted and trainer.global_step > self._first_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_last(trainer, self._resumed)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._whole_step is None or trainer.global_step <= self._first_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        left = isinstance(exception, SystemExit) and self._exit_status is not None
        ours = [callback for callback in model_checkpoints(trainer) if not callback.save_weights_only]
        if left or not (ours or isinstance(exception, KeyboardInterrupt)):
            return
        if trainer.global_step != self._step:
            # A callback failed after the step: what is left to do of it is to average.
            if (averaging := averaging_of(trainer)) is not None:
                averaging.on_train_batch_end(trainer, pl_module)
        elif self._changing and not self._step_is_left_out(trainer, exception):
            rank_zero_info("No checkpoint is written: the weights may be those of half a step.")
            return
        if trainer.world_size > 1:
            rank_zero_info("No checkpoint is written: after an exception, several processes cannot save together.")
            return
        try:
            path = save_last(trainer, self._resumed)
        except Exception as error:  # the first exception is the user's; it goes on
            rank_zero_warn(f"The last step could not be saved: {error}")
            return
        rank_zero_info(f"{type(exception).__name__}: step {trainer.global_step} is saved in {path}. {RESUME}")

    def _step_is_left_out(self, trainer: pl.Trainer, exception: BaseException) -> bool:
        """Whether the step was refused before it changed a weight; on a GPU the position is a step further by then."""
        return isinstance(exception, NonFiniteLossError) and trainer.strategy.root_device.type == "cpu"

    def _is_signalled(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether any rank has received a signal; the same on all ranks, which ask after the same step.

        On a GPU the answer of one step is read after the next, so that nothing waits for it; at once if something
        else, such as a validation, comes in between.
        """
        if trainer.world_size == 1:
            return self._signal is not None
        signalled = torch.tensor(self._signal is not None, dtype=torch.float32, device=trainer.strategy.root_device)
        before, self._reported = self._reported, HostFlag(trainer.strategy.reduce(signalled, reduce_op="max") > 0)
        more_comes_first = trainer.is_last_batch or (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
        latest = self._reported if not self._reported.is_late or more_comes_first else None
        return any(flag is not None and bool(flag) for flag in (before, latest))

    def _end(self, trainer: pl.Trainer) -> None:
        requeue, interrupted = (
            trainer.strategy.reduce_boolean_decision(signum is not None and self._signal == signum, all=False)
            for signum in (self._requeue_signal, signal.SIGINT)
        )
        path = save_last(trainer, self._resumed)
        for logger in trainer.loggers:
            logger.save()
        signum = signal.SIGINT if interrupted else signal.SIGTERM
        if requeue and self._requeue_signal is not None:
            signum = self._requeue_signal
        name = "Ctrl-C" if signum == signal.SIGINT else signum.name
        rank_zero_info(f"{name}: step {trainer.global_step} is saved in {path}, and the run ends. {RESUME}")
        requeued = requeue and trainer.strategy.broadcast(trainer.is_global_zero and _requeue())
        self._exit_status = 0 if requeued or _is_child(trainer) else 128 + signum

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._changing = False
        if self._exit_status is not None:
            # With `save_on_exception` it would save again, after this batch was fetched: resuming would skip it.
            remember_last_save(trainer, trainer.global_step)
            raise SystemExit(self._exit_status)


def _nothing() -> None:
    """A function that can be pickled, as a lambda cannot."""


def _requeue_signal(trainer: pl.Trainer) -> signal.Signals | None:
    # The strategy of a single device does not expose its environment, which may not requeue.
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def _is_child(trainer: pl.Trainer) -> bool:
    """Whether Lightning's first process started this one: it kills all of them when one exits with an error."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def _requeue() -> bool:
    """Requeue this job, or this task of an array, in SLURM; warns if that fails."""
    job, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        rank_zero_warn(f"`scontrol requeue {job}` failed: {said}. Submit it again, with --ckpt_path last.")
        return False
    rank_zero_info(f"SLURM has requeued job {job}.")
    return True
