"""`--config glyphs`: the configurations that the package ships, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_vfs.core.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "configs"
OPTIONS = ("--config", "-c")


def names() -> list[str]:
    """Names of the packaged configurations, such as `glyphs` and `scale/one_node`."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


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
        if equals and option in OPTIONS:
            resolved.append(f"{option}={_path(value)}")
        else:
            resolved.append(_path(arg) if i and args[i - 1] in OPTIONS else arg)
    return resolved


def _path(value: str) -> str:
    if Path(value).is_file() or ":" in value or "{" in value:
        return value
    name = value.removeprefix("configs/").removesuffix(".yaml")
    if name not in names():
        raise ConfigError(
            f"--config {value}: there is no such file, and no packaged configuration of that name. "
            f"The packaged ones are {', '.join(names())}."
        )
    return str(FOLDER / f"{name}.yaml")
