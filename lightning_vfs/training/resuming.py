"""Workarounds for cases in which Lightning does not resume exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vfs.training.last_file import model_checkpoints


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
    if fit_loop.epoch_loop.batch_progress.total.ready == 0:
        # Saved before its first step: Lightning would leave out a batch for a validation that has been.
        fit_loop.epoch_loop.restarting = False
    elif fit_loop.restarted_mid_epoch and epochs.processed == epochs.started:
        # Saved in the last batch: Lightning would neither count the next epoch as begun nor announce it.
        fit_loop.reset_restart_stage()
    elif fit_loop.restarted_on_epoch_end:
        # Saved after the last batch: with max_steps, Lightning would end the epoch a second time.
        fit_loop.epoch_progress.increment_completed()
        fit_loop.epoch_loop.restarting = False
        fit_loop.reset_restart_stage()


def batches_of(fit_loop: Mapping[str, Any]) -> int:
    """Batches that training has begun, over all epochs, by a state of the loop."""
    begun: int = fit_loop["epoch_loop.batch_progress"]["total"]["ready"]
    return begun


def repeat_validation(fit_loop: dict[str, Any]) -> None:
    """Resume with the validation that was interrupted, from its beginning.

    Args:
        fit_loop: the loop's state in a checkpoint.
    """
    progress = fit_loop["epoch_loop.val_loop.batch_progress"]
    progress["current"] = dict.fromkeys(progress["current"], 0)
    progress["total"] = dict.fromkeys(progress["total"], 0) | {"ready": 1, "started": 1}
    progress["is_last_batch"] = False


def recount_batches(fit_loop: dict[str, Any], loader: Any, limit: float) -> None:
    """Count the batches of an unfinished epoch in batches of this run's size, if another size was used.

    Args:
        fit_loop: the loop's state in a checkpoint.
        loader: this run's `SetLoader`.
        limit: the trainer's `limit_train_batches`.
    """
    states = fit_loop["state_dict"].get("combined_loader")
    batches = fit_loop["epoch_loop.batch_progress"]
    if not states or batches["is_last_batch"] or not batches["current"]["ready"]:
        return
    sampler, sets = loader.batch_sampler, loader.position(states[0])
    total = len(loader)
    total = min(total, limit) if isinstance(limit, int) else int(total * limit)
    left = min(len(sampler.bounds(sets)) - 1, total - sets // sampler.global_batch)
    done = total - max(0, left)
    shift = done - batches["current"]["processed"]
    batches["current"] = {name: value + shift for name, value in batches["current"].items()}
    batches["is_last_batch"] = left <= 0


def saved_step(callback: ModelCheckpoint) -> int:
    """The step that a ModelCheckpoint has last saved."""
    return callback._last_global_step_saved


def remember_last_save(trainer: pl.Trainer, step: int) -> None:
    """Otherwise a ModelCheckpoint saves again at this step, with the gradients of half a step missing."""
    for callback in model_checkpoints(trainer):
        callback._last_global_step_saved = step
