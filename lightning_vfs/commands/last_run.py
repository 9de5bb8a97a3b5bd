"""`--ckpt_path last` without a configuration: the newest run in the working folder; with one, as `fit` searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vfs.commands.configurations import configuration_of
from lightning_vfs.commands.last_checkpoint import LAST, newest_first
from lightning_vfs.commands.trust import check_class_paths, import_trusted
from lightning_vfs.commands.yaml_files import CONFIG_OPTIONS, configuration_files, given_options
from lightning_vfs.core.errors import CheckpointError, VFSError
from lightning_vfs.core.fingerprint import KEY as FINGERPRINT
from lightning_vfs.training.checkpoints import read_checkpoint

SEARCHED = (
    "runs/*/*/checkpoints/*.ckpt",
    "runs/*/checkpoints/*.ckpt",
    "lightning_logs/*/checkpoints/*.ckpt",
    "checkpoints/*.ckpt",
)
"""Checkpoints in the working folder, as the shipped configurations and Lightning's defaults write them."""

NAMES_CODE = ("class_path", "architecture", "sampler", "model_class")
"""Options of a run's configuration whose value may be an import path."""

LIGHTNINGS = tuple(f"lightning.pytorch.{part}." for part in ("callbacks", "loggers", "strategies", "profilers"))
"""Lightning's own classes that a run's configuration may name, apart from those that call what it names."""


def asks_for_last(args: Sequence[str]) -> bool:
    """Whether arguments have `--ckpt_path last`."""
    return f"--ckpt_path={LAST}" in args or ("--ckpt_path", LAST) in list(pairwise(args))


def newest() -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of the runs in the working folder, and its contents.

    Raises:
        CheckpointError: there is none that can be read.
    """
    unreadable = []
    for file in newest_first(file for pattern in SEARCHED for file in Path().glob(pattern)):
        try:
            checkpoint = read_checkpoint(file)
        except VFSError as error:
            unreadable.append(f"\n  {file}: {error}")
            continue
        rank_zero_info(
            f"--ckpt_path {LAST}: {file}, step {checkpoint.get('global_step')}, is the newest checkpoint here."
        )
        return file, checkpoint
    give = f"; these cannot be read:{''.join(unreadable[:5])}\nGive" if unreadable else ": give"
    raise CheckpointError(
        f"--ckpt_path {LAST}: there is no checkpoint {' or '.join(SEARCHED[::2])} in the working folder{give} the path "
        "of a checkpoint, or --config with the configuration of its run."
    )


def with_configuration(args: Sequence[str]) -> list[str]:
    """Arguments of a subcommand of the trainer, with the newest run's configuration, if they name no data.

    Raises:
        CheckpointError: there is no such run, or its configuration is gone.
        UntrustedCodeError: its configuration names code that the user has not named.
    """
    if not asks_for_last(args) or _have_data(args):
        return list(args)
    file, checkpoint = newest()
    config = configuration_of(file.parent.parent, checkpoint.get(FINGERPRINT, {}))
    if not config.is_file():
        raise CheckpointError(
            f"--ckpt_path {LAST}: {file} is the newest checkpoint here, but its run has no configuration "
            f"{config}: give one by --config."
        )
    trust = next((value for arg, value in given_options(args) if arg == "--trust"), None)
    code = [{"class_path": path} for path in _named_code(yaml.safe_load(config.read_text()))]
    check_class_paths(config, code, import_trusted(trust))
    return [args[0], f"--config={config}", *args[1:]]


def _have_data(args: Sequence[str]) -> bool:
    """Whether arguments or their configurations say what data it is; options alone do not."""
    if any(name in ("--data", "--data.class_path", "--data.root") for name, _ in given_options(args)):
        return True
    return any("data" in (yaml.safe_load(file.read_text()) or {}) for file in configuration_files(args))


def _named_code(values: Any) -> Iterator[str]:
    """Import paths in a configuration, apart from those of Lightning's classes."""
    if isinstance(values, dict):
        for name, value in values.items():
            if name in NAMES_CODE and isinstance(value, str):
                if not value.startswith(LIGHTNINGS) or value.endswith("LambdaCallback"):
                    yield value
            else:
                yield from _named_code(value)
    elif isinstance(values, list):
        for value in values:
            yield from _named_code(value)


def spell_out_last(args: Sequence[str], find_last: Callable[[list[Path]], str]) -> list[str]:
    """Arguments of `sample`, `evaluate` or `convert` with the path that `--ckpt_path last` stands for.

    It is the newest in the working folder, or of the runs whose configuration `--config` gives.

    Args:
        args: of the subcommand.
        find_last: searches for the newest checkpoint of the runs of configurations.

    Raises:
        CheckpointError: there is none.
    """
    if not asks_for_last(args):
        return list(args)
    runs = [file for file in configuration_files(args) if "trainer" in (yaml.safe_load(file.read_text()) or {})]
    found = find_last(runs) if runs else str(newest()[0])
    left, values = [], iter(args)
    for arg in values:
        option, equals, value = arg.partition("=")
        if option in CONFIG_OPTIONS or option == "--ckpt_path":
            value = value if equals else next(values, "")
            if option == "--ckpt_path":
                left.append(f"--ckpt_path={found if value == LAST else value}")
            elif Path(value) not in runs:
                left.append(f"{option}={value}")
        else:
            left.append(arg)
    return left
