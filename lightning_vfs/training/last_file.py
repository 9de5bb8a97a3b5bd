"""Where a run writes its last checkpoint: never over a file of another run, even if both write to one folder."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vfs.training.checkpoints import AtomicCheckpointIO


def model_checkpoints(trainer: pl.Trainer) -> list[ModelCheckpoint]:
    """The trainer's ModelCheckpoints."""
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def save_last(trainer: pl.Trainer, resumed: str | None) -> str:
    """Write a whole checkpoint to the run's last file, and give its path; collective.

    It is in the folder of the first ModelCheckpoint that saves whole checkpoints, preferably one with `save_last`, or
    in `checkpoints` in the trainer's root.

    Args:
        trainer: of the run.
        resumed: file of this very run that it was resumed from, which it may overwrite.
    """
    whole = [callback for callback in model_checkpoints(trainer) if not callback.save_weights_only and callback.dirpath]
    callback = next((c for c in whole if c.save_last), whole[0] if whole else None)
    path = _own_file(trainer, callback or _in_root(trainer), resumed)
    if callback is not None:
        callback.last_model_path = path  # which is part of the checkpoint
    trainer.save_checkpoint(path, weights_only=False)
    return path


def keep_last_file(trainer: pl.Trainer, resumed: str) -> None:
    """Have a resumed run go on with its own last file, also if its ModelCheckpoint has other options and no memory."""
    for callback in model_checkpoints(trainer):
        folder, name = os.path.split(os.path.realpath(resumed))
        here = callback.dirpath and os.path.realpath(callback.dirpath) == folder
        if (
            callback.save_last
            and not callback.last_model_path
            and here
            and name.startswith(callback.CHECKPOINT_NAME_LAST)
        ):
            callback.last_model_path = os.path.join(callback.dirpath, name)  # type: ignore[arg-type]


def _in_root(trainer: pl.Trainer) -> ModelCheckpoint:
    """Knows names in the folder that is used without a ModelCheckpoint."""
    callback = ModelCheckpoint(os.path.join(trainer.default_root_dir, "checkpoints"))
    claim_names(callback)
    return callback


def _own_file(trainer: pl.Trainer, callback: ModelCheckpoint, resumed: str | None) -> str:
    """The run's last file of a ModelCheckpoint, by Lightning's rule: `last`, or else the first free `last-v<n>`."""
    name = callback.CHECKPOINT_NAME_LAST
    if callback.last_model_path and "{" not in name:
        return callback.last_model_path
    metrics: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step, **trainer.callback_metrics}
    version, path = callback.STARTING_VERSION, callback.format_checkpoint_name(metrics, name)
    own = {os.path.realpath(file) for file in (callback.last_model_path, resumed) if file}
    while os.path.realpath(path) not in own and callback.file_exists(path, trainer):
        path = callback.format_checkpoint_name(metrics, name, ver=version)
        version += 1
    return path


def claim_names(callback: ModelCheckpoint) -> None:
    """Have a ModelCheckpoint take a free name by an empty file as soon as it looks for it.

    Otherwise a run that looks while another is still writing finds the same name free.
    """
    callback.file_exists = partial(_taken, type(callback).file_exists, callback)  # type: ignore[method-assign]


def _taken(exists: Any, callback: ModelCheckpoint, filepath: str, trainer: pl.Trainer) -> bool:
    if "://" in str(filepath) or not isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
        return bool(exists(callback, filepath, trainer))
    claimed = False
    if trainer.is_global_zero:
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.open("xb").close()
            claimed = True
        except FileExistsError:
            pass
    return not trainer.strategy.reduce_boolean_decision(claimed, all=False)
