"""Files from other people: what they say is checked before code is imported or memory is taken."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_vfs.core.checks import is_path
from lightning_vfs.core.errors import CheckpointError, UntrustedCodeError, VFSError

MOST_VALUES, DEEPEST = 10_000_000, 100
"""Values that a record or a configuration holds at most, and how deep they are nested."""


def is_loaded(path: str) -> bool:
    """Whether an import path names a class of a module that this process has imported for another reason."""
    module, _, name = path.rpartition(".")
    return isinstance(getattr(sys.modules.get(module), name, None), type)


def check_architectures(source: object, config: Any) -> None:
    """Refuse a model's configuration that a file gives, if it names classes that nobody else has asked for.

    Whoever wrote the file could otherwise choose which code runs here.

    Args:
        source: the file, for the message.
        config: plain values of a VFSConfig, which need not be valid.

    Raises:
        UntrustedCodeError: an encoder or denoiser of another package, which this process has not imported.
    """
    parts = [config.get(part) for part in ("encoder", "denoiser")] if isinstance(config, Mapping) else []
    named = [part.get("architecture") for part in parts if isinstance(part, Mapping)]
    refuse(source, (name for name in named if isinstance(name, str) and is_path(name) and not is_loaded(name)))


def refuse(source: object, names: Iterable[str]) -> None:
    """Raise UntrustedCodeError if there are such names, which are import paths that a file gives."""
    if found := sorted(set(names)):
        listed = ", ".join(name[:200] for name in found[:5])
        raise UntrustedCodeError(
            f"{source} names {listed}, which is not part of lightning_vfs: code is not imported because a file says "
            f"so. If you trust it, give --trust {found[0][:200]}; in Python, import it before you load the file."
        )


def check_plain(values: Any, most: int = MOST_VALUES) -> None:
    """Raise ValueError unless values are plain (mappings, lists, text, numbers), not too many and not nested deeply.

    Values that occur at several places count at each, as they do when they are printed or written.
    """
    waiting, count = [(values, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > most or depth > DEEPEST:
            raise ValueError(f"it holds more than {most:,} values, or nests them deeper than {DEEPEST}")
        if isinstance(value, Mapping):
            waiting.extend((each, depth + 1) for pair in value.items() for each in pair)
        elif isinstance(value, list | tuple):
            waiting.extend((each, depth + 1) for each in value)
        elif not (value is None or isinstance(value, str | int | float)):
            raise ValueError(f"it holds a {type(value).__name__}, which is not a plain value")


@contextmanager
def reading(source: object, remedy: str = "Use another copy of it.") -> Iterator[None]:
    """Whatever a damaged or hostile file causes inside becomes an error that names the file.

    Raises:
        CheckpointError: for an error of any kind; those of this package stay as they are.
    """
    try:
        yield
    except VFSError:
        raise
    except Exception as error:  # libraries raise nearly anything on damaged files
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:500]
        raise CheckpointError(f"{source} is damaged ({type(error).__name__}: {reason}). {remedy}") from error
