"""Code that the user names on the command line: imported from the working folder too, and trusted in files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from lightning_vfs.commands.yaml_files import CONFIG_OPTIONS
from lightning_vfs.core.checks import choose, is_path
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.trust import refuse

HELP = (
    "Import path of code that the checkpoint or its run's configuration names, such as a custom encoder or data set, "
    "if you trust it: my_package, or my_package.MyEncoder; several are separated by commas."
)

TRANSFORM = re.compile(r"torchvision\.transforms\.v2\.\w+")
"""Transforms that augment images; they are part of a package that is imported anyway."""


def import_trusted(names: str | None) -> list[str]:
    """Import what `--trust` names, so that files may name it too; returns the names of the modules.

    Raises:
        ConfigError: it cannot be imported.
    """
    modules = []
    for name in (names or "").split(","):
        if name := name.strip():
            try:
                modules.append(import_module(name).__name__)
            except ImportError:
                found = choose(name, {}) if is_path(name) else None
                if found is None:
                    raise ConfigError(f"--trust {name}: there is no module of that name.") from None
                modules.append(name.rpartition(".")[0])
    return modules


def check_class_paths(source: Path, values: Any, trusted: Sequence[str]) -> None:
    """Refuse a part of a configuration that a file gives, if it names classes other than ours and trusted ones.

    Raises:
        UntrustedCodeError: it names others.
    """
    allowed = ("lightning_vfs.", *(f"{module}." for module in trusted))
    named = (path for path in _class_paths(values) if is_path(path) and not path.startswith(allowed))
    refuse(source, (path for path in named if not TRANSFORM.fullmatch(path)))


def _class_paths(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        yield from (str(path) for name, path in values.items() if name == "class_path")
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _class_paths(value)


def use_working_folder(args: Sequence[str]) -> None:
    """If the arguments, or the YAML files that they name, name code in the working folder, make it importable.

    It comes last in Python's path: nothing in the folder replaces an installed package. Otherwise the working folder is
    not on the path, since it may be one that was downloaded.
    """
    folder = os.getcwd()
    if folder not in sys.path and any(_is_in(folder, name) for name in _named(args)):
        sys.path.append(folder)


def _named(args: Sequence[str]) -> Iterator[str]:
    """What looks like import paths among the values of arguments and in the files of `--config`."""
    for i, arg in enumerate(args):
        option, _, text = arg.partition("=")
        if not arg.startswith("-"):
            option, text = args[i - 1] if i else "", arg
        if option == "--trust":
            yield from (f"{name.strip()}." for name in text.split(","))
        if option in CONFIG_OPTIONS and Path(text).is_file():
            text = Path(text).read_text(errors="replace")
        yield from re.findall(r"(?<![\w./])[^\W\d]\w*\.[\w.]*\w(?![\w/])", text)


def _is_in(folder: str, name: str) -> bool:
    """Whether an import path leads to a module in a folder."""
    package, _, rest = name.partition(".")
    if package in sys.modules or not package.isidentifier():
        return False
    found = PathFinder.find_spec(package, [folder])
    if found is not None and found.loader is None:  # a folder without __init__.py, which need not be Python's
        found = PathFinder.find_spec(rest.partition(".")[0], [os.path.join(folder, package)])
    return found is not None
