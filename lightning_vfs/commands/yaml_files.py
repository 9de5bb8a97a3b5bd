"""YAML files that `--config` names: whether they can be read, and where they give an option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lightning_vfs.core.errors import ConfigError

CONFIG_OPTIONS = ("--config", "-c")


def given_options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Arguments without their values, and the value of each: what follows `=`, or the next argument."""
    for arg, after in pairwise([*args, ""]):
        name, equals, value = arg.partition("=")
        yield name, value if equals else after


def configuration_files(args: Sequence[str]) -> list[Path]:
    """Files that `--config` names, in their order."""
    found = (value for option, value in given_options(args) if option in CONFIG_OPTIONS)
    return [Path(value) for value in found if value and _is_file(value)]


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # YAML text longer than a name may be
        return False


def check_yaml(file: Path) -> None:
    """Refuse a configuration that is no YAML, or no mapping.

    Raises:
        ConfigError: with the line and what is wrong with it.
    """
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{file}{line}: this is not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {str(error).splitlines()[0]}.") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}, but a configuration maps names to values.")


def line_of(file: Path, key: str) -> int | None:
    """The line of a configuration that gives an option by its dotted name; lists and `init_args` have no name."""
    try:
        root = yaml.compose(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return next((line for name, line in _keys(root, "") if name == key), None)


def _keys(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _keys(part, prefix)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            below = prefix if name.value == "init_args" else f"{prefix}.{plain_key(name.value)}".lstrip(".")
            yield below, name.start_mark.line + 1
            yield from _keys(value, below)


def plain_key(name: str) -> str:
    """The dotted name of an option, as a flag or a key of YAML gives it, without `init_args` and `+`."""
    return name.lstrip("-").rstrip("+").replace(".init_args.", ".")
