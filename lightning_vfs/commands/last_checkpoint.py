"""`--ckpt_path last`: the newest checkpoint of this very run in the folders that a configuration's runs write to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from pydoc import locate
from typing import Any, NamedTuple

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vfs.core.errors import CheckpointError, ConfigError, VFSError
from lightning_vfs.core.fingerprint import Fingerprint, differences, fingerprint_of_checkpoint, unknown
from lightning_vfs.training.checkpoints import read_checkpoint
from lightning_vfs.training.ranks import gather_objects
from lightning_vfs.training.resuming import reopen_unfinished_epoch

LAST, LAST_IF_ANY = "last", "last_if_any"

HELP = (
    "A checkpoint to resume (fit) or to take the weights from: a path; `last`, the newest that a run of the same data, "
    "seed, model and optimizer has written; or, for fit, `last_if_any`, which starts a new run if there is none: one "
    "command for a job's first start and every restart."
)

LISTED = 5
"""Checkpoints of other runs that a message lists."""


def last_checkpoint(
    asked: str, subcommand: str, trainer: Namespace, ours: Callable[[], Fingerprint]
) -> tuple[Path, dict[str, Any]] | None:
    """What `--ckpt_path last` or `last_if_any` stands for: the newest checkpoint of a run with this fingerprint.

    Args:
        asked: `last` or `last_if_any`.
        subcommand: `fit` only resumes checkpoints with an optimizer's state.
        trainer: the trainer's part of the configuration, as parsed.
        ours: gives the fingerprint of the run that is about to start; called if there is a checkpoint at all.

    Returns:
        The file and its contents; None for `last_if_any` if there is none.

    Raises:
        CheckpointError: there is none, and `last` asks for one.
        ConfigError: `last_if_any` does not name a checkpoint to evaluate.
    """
    if asked == LAST_IF_ANY and subcommand != "fit":
        raise ConfigError(f"--ckpt_path {LAST_IF_ANY} is for fit; {subcommand} takes a path or {LAST}.")
    searched = checkpoint_folders(trainer)
    found, others = _newest(searched, subcommand == "fit", ours)
    if found is not None:
        path, checkpoint, unknown = found
        rank_zero_info(f"--ckpt_path {asked}: {path} is the newest checkpoint of this configuration's runs.")
        if unknown:
            rank_zero_info(
                f"An older version wrote it, which did not store its {unknown}: make sure they are the same."
            )
        if others:
            rank_zero_info(f"Newer, but of other runs:\n{_listed(others)}")
        return path, checkpoint
    where = " or ".join(os.path.join(folder, pattern) for folder, pattern in searched)
    nothing = f"there is no checkpoint {where}"
    if others:
        nothing = f"there is no checkpoint of this run in {where}, but of others:\n{_listed(others)}\n"
    if asked == LAST:
        begin = f"; to start a new run, leave --ckpt_path out, or give {LAST_IF_ANY}" if subcommand == "fit" else ""
        instead = f". Give the path of one that is elsewhere{begin}."
        if others:
            instead = f"To use one of these anyway, give its path: --ckpt_path {others[0].path}{begin}."
        raise CheckpointError(f"--ckpt_path {LAST}: {nothing}{instead}")
    rank_zero_info(f"--ckpt_path {LAST_IF_ANY}: {nothing}{'A' if others else '; a'} new run starts.")
    return None


class _PassedOver(NamedTuple):
    path: Path
    reason: str


def _listed(others: Sequence[_PassedOver]) -> str:
    lines = [f"  {path}: {reason}" for path, reason in others[:LISTED]]
    return "\n".join(lines + ([f"  and {len(others) - LISTED} more"] if len(others) > LISTED else []))


def _newest(
    searched: list[tuple[Path, str]], whole: bool, ours: Callable[[], Fingerprint]
) -> tuple[tuple[Path, dict[str, Any], str] | None, list[_PassedOver]]:
    """The newest checkpoint with our fingerprint, what it lacks to be compared; and what was passed over before it.

    Of the checkpoints of a folder that differ in the same way only the newest is listed.
    """
    others: dict[tuple[Path, str], _PassedOver] = {}
    mine: Fingerprint | None = None
    for file in newest_first(file for folder, pattern in searched for file in folder.glob(pattern)):
        try:
            checkpoint = read_checkpoint(file)
            theirs = fingerprint_of_checkpoint(checkpoint)
        except VFSError as error:
            others.setdefault((file, ""), _PassedOver(file, str(error)))
            continue
        if whole and "optimizer_states" not in checkpoint:
            continue
        mine = ours() if mine is None else mine
        different = differences(theirs, mine)
        if not different:
            return (file, checkpoint, unknown(theirs, mine)), list(others.values())
        reason = f"step {checkpoint.get('global_step')}; {', '.join(different)}"
        others.setdefault((file.parent, ", ".join(different)), _PassedOver(file, reason))
    return None, list(others.values())


def newest_first(files: Iterable[Path]) -> list[Path]:
    """Checkpoints, each once, by the time that they were written at."""
    # An empty file keeps the name for what a run is writing.
    written = {file for file in files if file.is_file() and file.stat().st_size}
    # There may be several of one step; `last` is written last.
    return sorted(written, key=lambda file: (file.stat().st_mtime_ns, file.name.startswith(LAST)), reverse=True)


def nothing_left(checkpoint: dict[str, Any], trainer: Namespace) -> str | None:
    """Why a run that resumes this checkpoint would train nothing: it has reached its last step or epoch."""
    max_steps, max_epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    step = checkpoint.get("global_step", 0)
    if max_steps is not None and 0 <= max_steps <= step:
        return f"step {step} is reached, and max_steps is {max_steps}"
    fit_loop = deepcopy(checkpoint.get("loops", {}).get("fit_loop", {}))
    if max_epochs is None or max_epochs < 0 or "epoch_progress" not in fit_loop:
        return None
    reopen_unfinished_epoch(fit_loop)
    epoch = fit_loop["epoch_progress"]["current"]
    # Saved in its last batch, an epoch is not counted yet.
    epochs = epoch["started"] if fit_loop["epoch_loop.batch_progress"]["is_last_batch"] else epoch["processed"]
    return f"{epochs} epochs are done, and max_epochs is {max_epochs}" if max_epochs <= epochs else None


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
