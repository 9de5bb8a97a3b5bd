"""Workarounds for cases in which Lightning does not resume exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


def reopen_unfinished_epoch(fit_loop: dict[str, Any]) -> None:
    """Resume in the epoch that `max_steps` cut short: if it was saved after that, Lightning counts it as done.

    Args:
        fit_loop: the loop's state in a checkpoint.
    """
    batches, epochs = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]
    begun = batches["current"]["ready"] > 0 and not batches["is_last_batch"]
    resumable = bool(fit_loop["state_dict"].get("combined_loader"))
    if begun and resumable and epochs["current"]["processed"] == epochs["current"]["started"]:
        for progress in epochs.values():
            progress["processed"] -= 1
            progress["completed"] = progress["processed"]


def begin_next_epoch(fit_loop: Any) -> None:
    """Resume from the end of an epoch with the next one; called when training starts, with the restored loop."""
    epochs = fit_loop.epoch_progress.current
    if fit_loop.restarted_mid_epoch and epochs.processed == epochs.started:
        # Saved in the last batch: Lightning would neither count the next epoch as begun nor announce it.
        fit_loop.reset_restart_stage()
    elif fit_loop.restarted_on_epoch_end:
        # Saved after the last batch: with max_steps, Lightning would end the epoch a second time.
        fit_loop.epoch_progress.increment_completed()
        fit_loop.epoch_loop.restarting = False
        fit_loop.reset_restart_stage()


def remember_last_save(trainer: pl.Trainer, step: int) -> None:
    """Otherwise a ModelCheckpoint saves again at this step, with the gradients of half a step missing."""
    for callback in _model_checkpoints(trainer):
        callback._last_global_step_saved = step


def _model_checkpoints(trainer: pl.Trainer) -> Iterator[ModelCheckpoint]:
    return (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
