"""`--model my_package.MyModel`: a model class of the user's own in place of VFSDDPM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_vfs.commands.yaml_files import CONFIG_OPTIONS
from lightning_vfs.core.checks import choose, is_path
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.modules import VFSDDPM

KEY = "model_class"
HELP = "Import path of a subclass of VFSDDPM, short: --model my_package.MyModel; its arguments are --model.NAME."


def own_model(args: Sequence[str]) -> tuple[type[VFSDDPM], list[str]]:
    """The class of the model that arguments or their configurations name, and the arguments with it under `KEY`.

    The parser's options are those of this class, so it has to be known before they are parsed.

    Raises:
        ConfigError: it cannot be imported, or is no subclass of VFSDDPM.
    """
    args, named = list(args), None
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        value = value if equals else args[i + 1] if i + 1 < len(args) else ""
        if option in CONFIG_OPTIONS:
            named = _of_configuration(value) or named
        elif option in ("--model", f"--{KEY}") and _is_class(value):
            named, args[i] = value, f"--{KEY}={value}" if equals else f"--{KEY}"
    if named is None:
        return VFSDDPM, args
    found = choose(named, {})
    if not (isinstance(found, type) and issubclass(found, VFSDDPM)):
        raise ConfigError(f"--model {named} is {found!r}, but must be a subclass of lightning_vfs.VFSDDPM.")
    return found, args


def _is_class(value: str) -> bool:
    """Whether a value is an import path, and neither a file nor YAML."""
    return is_path(value) and value.replace(".", "").isidentifier() and not Path(value).is_file()


def _of_configuration(value: str) -> str | None:
    """What a configuration, a file or YAML, names; None where it cannot be read, which the parser says better."""
    try:
        values: Any = yaml.safe_load(Path(value).read_text() if Path(value).is_file() else value)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = values.get(KEY) if isinstance(values, dict) else None
    return named if isinstance(named, str) else None
