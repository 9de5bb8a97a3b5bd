"""The cache folder: what is in it, who uses it, and what is removed when it takes too much space.

Files are known by their names; it needs no torch, so that `lightning-vfs cache` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import ABANDONED_SECONDS, local_path, nearest, remove_abandoned, replacing

try:
    import fcntl
except ImportError:  # Windows removes no file that a process has mapped
    fcntl = None  # type: ignore[assignment]

FOLDER, SIZE = "LIGHTNING_VFS_CACHE", "LIGHTNING_VFS_CACHE_SIZE"
"""Environment variables: the folder, and the bytes that it may take."""

MOST_BYTES = 200 * 2**30
"""Bytes that the folder may take by default, if that is not more than half of the disk."""

FEATURES = "features"
"""Folder, in that of the cache, of the features and figures of real images."""

_NAME = re.compile(r"[a-z]+-(?:[0-9a-f]{8}-)?[0-9a-f]{16,64}|[0-9a-f]{64}")
_SUFFIXES = (".safetensors", ".partial", ".json", ".lock", ".unreadable.txt")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 2 ** (10 * (i + 1)) for i, unit in enumerate("KMGT")}
_MOST_HEADER = 10**8


def default_cache_dir() -> Path:
    """`$LIGHTNING_VFS_CACHE`, or `~/.cache/lightning_vfs`."""
    return local_path(os.environ.get(FOLDER) or "~/.cache/lightning_vfs", FOLDER)


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as `50GB`, `1.5 TiB` or `1000000`.

    Raises:
        ConfigError: it is none; `option` is what the message calls it.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    if found is None:
        raise ConfigError(f"{option} is {text!r}; it must be a size such as 50GB, 1.5TiB or 1000000 (bytes).")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def size_limit(folder: Path) -> int:
    """Bytes that the files of a cache folder may take: `$LIGHTNING_VFS_CACHE_SIZE`, or 200 GiB or half of the disk.

    Raises:
        ConfigError: the environment variable is not a size.
    """
    text = os.environ.get(SIZE)
    return parse_size(text, SIZE) if text else min(MOST_BYTES, shutil.disk_usage(nearest(folder)).total // 2)


class Lease:
    """Keeps a file of the cache from being removed, as long as this object exists in any process.

    Raises:
        OSError: there is no such file (any more).
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        if os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError(f"{path} was removed from the cache")

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)


def mark_used(path: Path) -> None:
    """Note that a file of the cache is used now, which decides what is removed first."""
    with contextlib.suppress(OSError):  # somebody else's cache
        os.utime(path)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` noted next to a file of the cache; nothing if that cannot be read."""
    try:
        state = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(path: Path, **state: Any) -> None:
    """Note plain values next to a file of the cache, besides those that are there."""
    with contextlib.suppress(OSError), replacing(path.with_suffix(".json"), sync=False) as temporary:
        temporary.write_text(json.dumps(read_state(path) | state))


def read_header(path: Path) -> tuple[str, dict[str, Any]]:
    """Header of a safetensors file: its text, and what it says.

    Raises:
        OSError, ValueError: it cannot be read, or is damaged.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MOST_HEADER, path.stat().st_size):
            raise ValueError("it has no header")
        text = file.read(length).decode()
    try:
        header = json.loads(text)
    except RecursionError as error:
        raise ValueError("its header nests values too deeply") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is not one of tensors")
    return text, header


@dataclass(frozen=True)
class Entry:
    """Files of the cache that belong together.

    Attributes:
        name: of the entry; in the folder `features` with that before it.
        files: all of them.
        size: bytes.
        last_used: seconds since the epoch.
    """

    name: str
    files: tuple[Path, ...]
    size: int
    last_used: float

    @property
    def content(self) -> Path | None:
        """The file that the others are about; None if it is not there."""
        order = (".safetensors", ".partial", *([".json"] if self.name.startswith(f"{FEATURES}/") else []))
        return next((file for suffix in order for file in self.files if file.suffix == suffix), None)

    def about(self) -> tuple[str, str]:
        """What it is, and the folder or file that it was made of, in words."""
        content = self.content
        if content is None or content.suffix == ".json":
            return "figures of real images", ""
        unfinished = "unfinished: " if content.suffix == ".partial" else ""
        try:
            metadata = read_header(content)[1].get("__metadata__", {})
            if "extractor" in metadata:
                return f"features of {int(metadata['num_images']):,} images by {metadata['extractor']}", ""
            return unfinished + metadata["about"], metadata.get("source", "")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{unfinished}of an older version, or damaged", ""


def entries(folder: Path) -> list[Entry]:
    """What a cache folder holds, the one that was used longest ago first; files of other kinds do not count."""
    found: dict[str, list[Path]] = {}
    for place, prefix in ((folder, ""), (folder / FEATURES, f"{FEATURES}/")):
        with contextlib.suppress(OSError):
            for file in place.iterdir():
                name, dot, suffix = file.name.partition(".")
                if dot + suffix in _SUFFIXES and _NAME.fullmatch(name):
                    found.setdefault(prefix + name, []).append(file)
    sized = (entry for name, files in found.items() if (entry := _entry(name, files)))
    return sorted(sized, key=lambda entry: (entry.last_used, entry.name))


def _entry(name: str, files: list[Path]) -> Entry | None:
    stats = []
    for file in files:
        with contextlib.suppress(OSError):  # removed meanwhile
            stats.append(file.stat())
    if not stats:
        return None
    return Entry(name, tuple(sorted(files)), sum(s.st_size for s in stats), max(s.st_mtime for s in stats))


def remove(entry: Entry) -> bool:
    """Remove an entry; False, and nothing is removed, if a running job uses or makes it, or it is somebody else's."""
    with ExitStack() as stack:
        for file in entry.files:
            if file.suffix not in (".json", ".txt") and not stack.enter_context(_alone(file)):
                return False
        try:
            for file in entry.files:
                file.unlink(missing_ok=True)
        except OSError:
            return False
    return True


def in_use(entry: Entry) -> bool:
    """Whether a running job uses or makes it."""
    with ExitStack() as stack:
        files = (file for file in entry.files if file.suffix not in (".json", ".txt"))
        return not all([stack.enter_context(_alone(file)) for file in files])


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether no other process or object holds a file; none can begin to until the end of the context."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except OSError:
        alone = False
    try:
        yield alone
    finally:
        os.close(descriptor)


def make_space(folder: Path, needed: int, say: Callable[[str], object], limit: int | None = None) -> int:
    """Remove what killed jobs left, and what no running job uses, the least recently used first, until there is space.

    Args:
        folder: of the cache.
        needed: bytes that are about to be written.
        say: is called with a line on what is removed.
        limit: bytes that its files may take, with those needed; `size_limit` by default.

    Returns:
        Bytes that are taken afterwards.

    Raises:
        ConfigError: the environment variable for the limit is not a size.
    """
    limit = size_limit(folder) if limit is None else limit
    for place in (folder, folder / FEATURES):
        remove_abandoned(place)
    found = entries(folder)
    for entry in found:
        if entry.content is None and time.time() - entry.last_used > ABANDONED_SECONDS:
            remove(entry)
    taken = sum(entry.size for entry in found)
    for entry in found:
        if taken + needed <= limit:
            break
        if entry.content is None:
            continue
        what, source = entry.about()
        if remove(entry):
            taken -= entry.size
            say(
                f"Removed from the cache {folder}, which may take {readable(limit)} ({SIZE}): {what}"
                f"{f' of {source}' if source else ''}, {readable(entry.size)}, last used {day(entry.last_used)}."
            )
    return taken


def readable(size: int) -> str:
    """Bytes for people, such as `1.5 GiB`."""
    value, unit = float(size), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size:,} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"


def day(seconds: float) -> str:
    """A time for people, such as `2026-11-25 22:40`."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
