"""Files: written whole or not at all, and told apart by hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lightning_vfs.core.errors import VFSError


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """A temporary name beside `path`, which no other process has, that becomes `path` if nothing fails inside.

    What is made under that name is a file, or a folder where there is none at `path`. A process that is killed leaves
    `path` as it was.

    Args:
        path: what is replaced; its folder is made if need be.
        sync: wait until a file is on the disk, so that it is whole also after a loss of power.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
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
