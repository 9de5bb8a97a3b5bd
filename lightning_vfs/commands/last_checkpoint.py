"""`--ckpt_path last`: the newest checkpoint of the folders that a configuration's runs write to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.training.checkpoints import read_checkpoint
from lightning_vfs.training.ranks import gather_objects

LAST, LAST_IF_ANY = "last", "last_if_any"

HELP = (
    "A checkpoint to resume (fit) or to take the weights from: a path; `last`, the newest that runs of this "
    "configuration have written; or, for fit, `last_if_any`, which starts a new run if there is none: one command for "
    "a job's first start and every restart."
)


def last_checkpoint(asked: str, subcommand: str, trainer: Namespace) -> Path | None:
    """What `--ckpt_path last` or `last_if_any` stands for: the newest checkpoint of all runs of a configuration.

    Args:
        asked: `last` or `last_if_any`.
        subcommand: `fit` only resumes checkpoints with an optimizer's state.
        trainer: the trainer's part of the configuration, as parsed.

    Returns:
        None for `last_if_any` if there is none.

    Raises:
        CheckpointError: there is none, and `last` asks for one.
        ConfigError: `last_if_any` does not name a checkpoint to evaluate.
    """
    if asked == LAST_IF_ANY and subcommand != "fit":
        raise ConfigError(f"--ckpt_path {LAST_IF_ANY} is for fit; {subcommand} takes a path or {LAST}.")
    searched = checkpoint_folders(trainer)
    found = _newest(searched, whole=subcommand == "fit")
    if found is not None:
        rank_zero_info(f"--ckpt_path {asked}: {found} is the newest checkpoint of this configuration's runs.")
        return found
    nothing = f"there is no checkpoint {' or '.join(os.path.join(folder, pattern) for folder, pattern in searched)}"
    if asked == LAST:
        begin = f"; to start a new run, leave --ckpt_path out, or give {LAST_IF_ANY}" if subcommand == "fit" else ""
        raise CheckpointError(f"--ckpt_path {LAST}: {nothing}. Give the path of one that is elsewhere{begin}.")
    rank_zero_info(f"--ckpt_path {LAST_IF_ANY}: {nothing}; a new run starts.")
    return None


def _newest(searched: list[tuple[Path, str]], whole: bool) -> Path | None:
    files = {file for folder, pattern in searched for file in folder.glob(pattern) if file.is_file()}
    # There may be several of one step; `last` is written last.
    for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name.startswith("last")), reverse=True):
        if not whole or "optimizer_states" in read_checkpoint(file):
            return file
    return None


def checkpoint_folders(trainer: Namespace) -> list[tuple[Path, str]]:
    """Folders where runs of this trainer configuration write checkpoints, and patterns of these in them.

    Raises:
        CheckpointError: they depend on a logger whose folders are unknown here.
    """
    written_by = list(_model_checkpoints(trainer))
    given = [Path(options["dirpath"]).expanduser() for options in written_by if options.get("dirpath")]
    found = [(folder, "*.ckpt") for folder in given]
    if trainer.get("enable_checkpointing") is False or not _loggers(trainer):
        found.append((_root(trainer), "checkpoints/*.ckpt"))
    elif len(given) < len(written_by) or not written_by:
        found.append(_place_by_logger(trainer))
    return found


def _place_by_logger(trainer: Namespace) -> tuple[Path, str]:
    """The first logger decides where a ModelCheckpoint without its own folder writes."""
    logger = _loggers(trainer)[0]
    if logger is True:
        return _root(trainer) / "lightning_logs", "*/checkpoints/*.ckpt"
    kind, options = locate(logger["class_path"]), logger["init_args"]
    if not (isinstance(kind, type) and issubclass(kind, CSVLogger | TensorBoardLogger | WandbLogger)):
        raise CheckpointError(
            f"--ckpt_path last does not know the folders of {logger['class_path']}: give the path of a checkpoint, or "
            "a dirpath to ModelCheckpoint."
        )
    if issubclass(kind, WandbLogger):
        name = options.get("project") or os.environ.get("WANDB_PROJECT", "lightning_logs")
    else:
        name = options.get("name") or ""
    version = options.get("version")
    version = "*" if version is None else version if isinstance(version, str) else f"version_{version}"
    return Path(options.get("save_dir") or _root(trainer)) / name, f"{version}/checkpoints/*.ckpt"


def _root(trainer: Namespace) -> Path:
    return Path(trainer.get("default_root_dir") or ".")


def _loggers(trainer: Namespace) -> list[Any]:
    logger = trainer.get("logger")
    logger = True if logger is None else logger
    return logger if isinstance(logger, list) else [logger] if logger else []


def _model_checkpoints(trainer: Namespace) -> Iterator[Namespace]:
    """Options of every ModelCheckpoint."""
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        kind = locate(callback["class_path"])
        if isinstance(kind, type) and issubclass(kind, ModelCheckpoint):
            yield callback["init_args"]


class SameCheckpoint(Callback):
    """Refuse to run if ranks have read different checkpoints, as file systems shared by nodes may show them.

    Args:
        read: what this rank has read, in words.

    Raises:
        CheckpointError: the ranks have read different ones; on every rank.
    """

    def __init__(self, read: str) -> None:
        self.read = read

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        read = gather_objects(self.read)
        if len(set(read)) > 1:
            said = ", ".join(f"rank {rank} {what}" for rank, what in enumerate(read))
            raise CheckpointError(
                f"The ranks have read different checkpoints: {said}. Wait until all nodes see the same files, or give "
                "the path of one of them."
            )
