"""Configurations: those that the package ships, by their names (`--config glyphs`), and those that runs write."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_vfs.commands.yaml_files import CONFIG_OPTIONS, check_yaml
from lightning_vfs.core.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """Names of the packaged configurations, such as `glyphs` and `scale/one_node`."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def packaged(path: str) -> str | None:
    """Name of a packaged configuration, given its file; None for any other file."""
    return next((name for name in names() if Path(path) == FOLDER / f"{name}.yaml"), None)


def resolve(args: Sequence[str]) -> list[str]:
    """Arguments with the path of a packaged configuration for every `--config` that names one and not a file.

    `glyphs`, `glyphs.yaml` and `configs/glyphs.yaml` name the same one; YAML text instead of a name stays
    unchanged.

    Raises:
        ConfigError: there is neither such a file nor such a packaged configuration.
    """
    resolved: list[str] = []
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if equals and option in CONFIG_OPTIONS:
            resolved.append(f"{option}={_path(value)}")
        else:
            resolved.append(_path(arg) if i and args[i - 1] in CONFIG_OPTIONS else arg)
    return resolved


def _path(value: str) -> str:
    if ":" in value or "{" in value:
        return value
    path = Path(value)
    if path.is_file():
        check_yaml(path)
        return value
    name = value.removeprefix("configs/").removesuffix(".yaml")
    if name in names():
        return str(FOLDER / f"{name}.yaml")
    if path.is_dir():
        raise ConfigError(f"--config {value} is a folder: give a file of it, such as {path / 'config.yaml'}.")
    from lightning_vfs.commands.usage import did_you_mean  # with jsonargparse, which no other argument needs here

    here = path.parent.glob("*.yaml") if path.parent.is_dir() else ()
    near = did_you_mean(name, [*names(), *(file.as_posix() for file in here)])
    raise ConfigError(
        f"--config {value}: there is no such file, and no packaged configuration of that name"
        f"{near or '. The packaged ones are ' + ', '.join(names()) + '.'}"
    )


def own_configuration(folder: Path, fingerprint: dict[str, Any]) -> Path:
    """The file for a run's configuration in a folder: `config.yaml`, or `config-v1.yaml` if that is another run's."""
    for version in itertools.count():
        path = folder / (f"config-v{version}.yaml" if version else "config.yaml")
        if _states(path, fingerprint) or not fingerprint_file(path).is_file():
            return path
    raise AssertionError("there is always another version")


def configuration_of(folder: Path, fingerprint: dict[str, Any]) -> Path:
    """The configuration of the run with this fingerprint in a folder; `config.yaml` if none states it."""
    of_runs = (path for path in sorted(folder.glob("config-v*.yaml")) if _states(path, fingerprint))
    return next(of_runs, folder / "config.yaml")


def fingerprint_file(path: Path) -> Path:
    """The file with the fingerprint of the run that has written a configuration."""
    return path.with_name(path.name.replace("config", "fingerprint", 1)).with_suffix(".json")


def _states(path: Path, fingerprint: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(fingerprint_file(path).read_bytes()) == fingerprint)
    except (OSError, ValueError):
        return False
