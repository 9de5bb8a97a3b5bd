"""PreemptionCheckpoint: a run that must end writes a checkpoint first, and resumes from it exactly."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vfs.training.host_flag import HostFlag
from lightning_vfs.training.logged_steps import ends_step
from lightning_vfs.training.resuming import (
    begin_next_epoch,
    remember_last_save,
    reopen_unfinished_epoch,
)


class PreemptionCheckpoint(Callback):
    """Write `last.ckpt` and end the run on SIGTERM, and on the signal by which SLURM announces a job's end.

    A signal is only noted when it arrives. At the end of the next training batch that steps the optimizer, when no
    gradient is half accumulated and the model has its raw weights, all ranks write the checkpoint together, even if
    only one rank received the signal. It goes to the folder of the first ModelCheckpoint, or to `checkpoints` in the
    trainer's root if there is none. What is due after that step, such as a validation, is still done and logged, and
    then the run ends: the process exits with 143 (128 + 15) after SIGTERM. Further signals change nothing. A signal
    that arrives during a validation or an evaluation waits for its end, and for the next training step.

    If the trainer's SLURMEnvironment requeues (its default), it also listens to its `requeue_signal` (SIGUSR1) and
    requeues the job as soon as the checkpoint is written: exit status 0, or 138 (128 + 10) if SLURM refused.

    A run resumed with this callback reproduces the uninterrupted run, whatever ended it, and wherever a ModelCheckpoint
    has saved; `resuming.py` has the cases in which Lightning alone would differ.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._signal: int | None = None
        self._exit_status: int | None = None
        self._reported: HostFlag | None = None
        self._requeue_signal = _requeue_signal(trainer)
        # Last, after averaging and the bookkeeping of other callbacks: their state is part of the checkpoint.
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            reopen_unfinished_epoch(checkpoint["loops"]["fit_loop"])
            remember_last_save(trainer, checkpoint["global_step"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not ends_step(trainer):
            rank_zero_warn(
                f"The checkpoint of step {trainer.global_step} is written while gradients are accumulated for the next "
                "one, and lacks them: a run resumed from it will differ. Let ModelCheckpoint save by "
                "`every_n_train_steps`, or validate at multiples of `accumulate_grad_batches`."
            )

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        self._listen(trainer)
        begin_next_epoch(trainer.fit_loop)

    def _listen(self, trainer: pl.Trainer) -> None:
        """Replaces Lightning's handlers, which act at once; Lightning restores the previous ones."""
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("PreemptionCheckpoint cannot receive signals: Python delivers them only to the main thread.")
            return
        for signum in (signal.SIGTERM, self._requeue_signal):
            if signum is not None:
                signal.signal(signum, self._note)
        # Before every batch Lightning broadcasts whether rank 0 had a SIGTERM, for which all ranks wait for the device.
        # Its handler no longer gets one, so there is nothing to broadcast.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def _note(self, signum: int, frame: Any) -> None:
        if self._signal is None:
            self._signal = signum

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._is_signalled(trainer, batch_idx):
            self._save(trainer)

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

    def _save(self, trainer: pl.Trainer) -> None:
        requeue = trainer.strategy.reduce_boolean_decision(
            self._signal is not None and self._signal == self._requeue_signal, all=False
        )
        path = _path(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        for logger in trainer.loggers:
            logger.save()
        signum = self._requeue_signal if requeue and self._requeue_signal is not None else signal.SIGTERM
        rank_zero_info(
            f"{signal.Signals(signum).name}: step {trainer.global_step} is saved in {path}, and the run ends. "
            "Resume with the same command and --ckpt_path last."
        )
        requeued = requeue and trainer.strategy.broadcast(trainer.is_global_zero and _requeue())
        self._exit_status = 0 if requeued or _is_child(trainer) else 128 + signum

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self._exit_status is not None:
            # With `save_on_exception` it would save again, after this batch was fetched: resuming would skip it.
            remember_last_save(trainer, trainer.global_step)
            raise SystemExit(self._exit_status)


def _nothing() -> None:
    """A function that can be pickled, as a lambda cannot."""


def _path(trainer: pl.Trainer) -> str:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            return os.path.join(callback.dirpath, "last.ckpt")
    return os.path.join(trainer.default_root_dir, "checkpoints", "last.ckpt")


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
