"""Files: written whole or not at all, and identified by hashes."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lightning_vfs.core.errors import ConfigError, VFSError
from lightning_vfs.core.trust import check_plain

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|.*/file:/")
"""Beginning of a URL, and of what is left of one that was taken for a path; not of `C:/`."""

ABANDONED_SECONDS = 60.0
"""Age from which a temporary file of a process that no longer exists is removed."""

ABANDONED_DAY = 86_400.0
"""Age from which one of another machine is removed."""

TEMPORARY = re.compile(r"^\..+\.\d+\.[0-9a-f]{8}\.tmp$")
"""Names of temporary files."""


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """A temporary name in the same folder, unique to this process, that becomes `path` if nothing fails inside.

    What is written under that name is a file, or a folder if there is none at `path`. A process that is killed leaves
    `path` unchanged.

    Args:
        path: what is replaced; its folder is made if necessary.
        sync: wait until a file is on the disk, so that it is whole even after a power failure.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = f".{path.name[:40]}.{socket.gethostname()[:20]}"
    if sync:  # not for each of many small files: it lists the folder
        _remove_abandoned(path.parent, glob.escape(mine))
    temporary = path.with_name(f"{mine}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    temporary.touch()
    permissions = temporary.stat().st_mode  # as the user's umask says, which not every writer follows
    temporary.unlink()
    try:
        yield temporary
        if temporary.is_file():
            temporary.chmod(permissions)
            if sync:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove temporary files of killed processes of this machine: each could be as large as a checkpoint.

    `prefix` is a pattern of what stands before the number of the process.
    """
    for left in folder.glob(f"{prefix}.*.*.tmp"):
        try:
            abandoned = time.time() - left.stat().st_mtime > ABANDONED_SECONDS
            os.kill(int(left.name.split(".")[-3]), 0)
        except (ProcessLookupError, OverflowError):
            if abandoned:
                left.unlink(missing_ok=True) if left.is_file() else shutil.rmtree(left, ignore_errors=True)
        except (OSError, ValueError):
            continue  # removed meanwhile, or of another user


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of `replacing` have left in a folder, whatever they were writing.

    Of other machines, whose processes are not known here, that is what nobody has written to for a day.
    """
    _remove_abandoned(folder, f".*.{glob.escape(socket.gethostname()[:20])}")
    for left in folder.glob(".*.*.*.*.tmp"):
        with contextlib.suppress(OSError):
            if TEMPORARY.search(left.name) and time.time() - left.stat().st_mtime > ABANDONED_DAY:
                left.unlink()


def local_path(path: str | os.PathLike[str], option: str) -> Path:
    """A path with `~` expanded.

    Raises:
        ConfigError: it is a URL; `option` is what the message calls it.
    """
    text = os.fsdecode(path)
    if _URL.match(text):
        instead = "without `file://`" if "file:" in text else "of a mounted bucket, or copy the files there afterwards"
        raise ConfigError(
            f"{option} is {text}, but files are read from and written to folders of this machine, not URLs: give the "
            f"path {instead}."
        )
    return Path(os.path.expanduser(text))


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists; of a file in their place, that one."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))


def try_folder(folder: Path) -> None:
    """Find out, before work is done, whether files can be written to a folder; it is not made.

    Raises:
        OSError: they cannot.
    """
    place = nearest(folder)
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(place))
    with tempfile.TemporaryFile(dir=place) as probe:
        probe.write(b"\1" * 4096)
        probe.flush()
        os.fsync(probe.fileno())


def check_is_folder(folder: Path) -> None:
    """Refuse a folder to write to that is a file, or below one.

    Raises:
        ConfigError: what is there, and what to do.
    """
    if not (place := nearest(folder)).is_dir():
        message = f"{place} is a file, not a folder: {folder} cannot be written to. Choose another folder."
        raise ConfigError(message) from NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))


def make_room(folder: Path, listing: str, names: Iterable[str]) -> list[Path]:
    """Check that files of these names can be written to a folder, replacing those of an earlier run.

    Args:
        folder: made if necessary.
        listing: name of the JSON file in which a run lists what it writes, under `files`.
        names: of the files that are about to be written.

    Returns:
        Files of the earlier run, to be deleted when there is something to write.

    Raises:
        ConfigError: the folder cannot be made or written, or holds files of these names that no listing names.
    """
    check_is_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f".{listing}", sync=False) as probe:
            probe.touch()
        (folder / f".{listing}").unlink()
        listed = read_json(folder / listing)["files"] if (folder / listing).is_file() else []
        earlier = [folder / name for name in listed if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} cannot be written to: {error}. Choose another folder.") from error
    taken = [name for name in names if (folder / name).exists() and folder / name not in earlier]
    if taken:
        raise ConfigError(
            f"{folder} holds {', '.join(taken[:3])}{', ...' if len(taken) > 3 else ''}, which no earlier run has "
            f"listed in {listing}: choose another folder, or move them, so that they are not overwritten."
        )
    return earlier


def begin_files(folder: Path, listing: str, names: Sequence[str], keep: bool = False) -> None:
    """Make room for files of these names, delete those of an earlier run, and list the new ones.

    Args:
        folder, listing, names: as for `make_room`.
        keep: the run continues: what is listed stays, and is listed with the new files.

    Raises:
        ConfigError: as `make_room`.
        OSError: the listing cannot be written.
    """
    earlier = make_room(folder, listing, names)
    if not keep:
        for file in earlier:
            file.unlink(missing_ok=True)
    listed = list(dict.fromkeys([*(file.name for file in earlier if keep), *names]))
    with replacing(folder / listing, sync=False) as temporary:
        temporary.write_text(json.dumps({"files": listed}) + "\n")


MOST_JSON = 2**26
"""Bytes of a JSON file; the record of 50,000 classes has 2**24."""


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or larger or nested deeper than any that this package writes.
    """
    status = path.stat()
    if stat.S_ISFIFO(status.st_mode):
        raise ValueError("it is a pipe, not a file")  # reading it would wait for whoever writes
    if status.st_size > MOST_JSON:
        raise ValueError(f"it has {status.st_size:,} bytes, and JSON files here have at most {MOST_JSON:,}")
    try:
        values = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it nests values too deeply") from error
    check_plain(values)
    return values


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        VFSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VFSError(f"{path} cannot be read for its SHA-256 ({error.strerror or error}).") from error


def hash_of(*values: str | np.ndarray) -> str:
    """16 hexadecimal digits of SHA-256 over strings and arrays (with their type and shape), in order."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, str):
            kind, content = "str", value.encode(errors="surrogatepass")
        else:
            array = np.asarray(value)
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            kind, content = f"{array.dtype.str}{array.shape}", array.tobytes()
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        sha.update(f"{kind}:{len(content)}:".encode())
        sha.update(content)
    return sha.hexdigest()[:16]
