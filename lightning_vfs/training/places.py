"""Where a run writes: what cannot be written is found before the first step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import local_path, nearest, try_folder
from lightning_vfs.training.ranks import gather_objects

COPIES = 4
"""Of the weights in a checkpoint: raw and averaged ones, and AdamW's two moments."""


def check_places(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse folders of a run that are URLs or not the same for all libraries; to train, also those that are full.

    All ranks call it, and the first one tries the folders.

    Raises:
        ConfigError: the message names the option and says what to do.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return  # it writes nothing
    for option, folder in _folders(trainer):
        local_path(folder, option)
        if os.path.expandvars(os.path.expanduser(folder)) != os.fspath(folder):
            raise ConfigError(
                f"{option} is {folder}, which some libraries expand and others take literally, so that the files of a "
                f"run would be in two places: give {os.path.expandvars(os.path.expanduser(folder))}."
            )
    if trainer.state.fn == TrainerFn.FITTING:
        problem = _problem(trainer, pl_module) if trainer.is_global_zero else None
        if found := next(filter(None, gather_objects(problem)), None):
            raise ConfigError(found)


def _folders(trainer: pl.Trainer) -> Iterator[tuple[str, Any]]:
    """The folders that a run was given, and the options that say so."""
    yield "default_root_dir of the Trainer", trainer.default_root_dir
    for logger in trainer.loggers:
        if isinstance(folder := logger.save_dir, str | os.PathLike):
            yield f"save_dir of {type(logger).__name__}", folder
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            yield f"dirpath of {type(callback).__name__}", callback.dirpath


def _problem(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str | None:
    """Why checkpoints cannot be written, if so."""
    size = COPIES * sum(value.numel() * value.element_size() for value in pl_module.parameters())
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.dirpath is None:
            continue
        folder = Path(callback.dirpath)
        try:
            try_folder(folder)
            free = shutil.disk_usage(nearest(folder)).free
        except OSError as error:
            return (
                f"Checkpoints cannot be written to {folder}: {error}. Choose another folder, by "
                "--trainer.default_root_dir or the dirpath of ModelCheckpoint."
            )
        if free < size:
            return (
                f"A checkpoint takes about {size / 2**20:,.0f} MiB, but {folder} has {free / 2**20:,.0f} MiB free: "
                "make room, or choose another folder, by --trainer.default_root_dir or the dirpath of ModelCheckpoint."
            )
    return None
