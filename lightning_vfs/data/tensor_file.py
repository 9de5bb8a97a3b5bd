"""A safetensors file that is written piece by piece and carries its own checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lightning_vfs.data.cache_folder import read_header, read_state, write_state

_SIZES = {"U8": 1, "BF16": 2, "F32": 4, "I64": 8}
_TYPES = {"U8": np.uint8, "I64": np.int64}
_UNKNOWN = "0" * 64


class TensorFile:
    """Tensors of a safetensors file that is being written; an unfinished file of the same layout is continued.

    Nothing but what is being written is held in memory: a mapped file would count as memory of this process.

    Args:
        path: the file.
        tensors: type (`U8`, `BF16`, `F32`, `I64`) and shape of every tensor.
        metadata: strings that it keeps.

    Attributes:
        continued: whether the file was there.

    Raises:
        OSError: it cannot be written, or the disk is too small.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
    ) -> None:
        self.path, self._tensors = path, dict(tensors)
        header: dict[str, object] = {"__metadata__": {**metadata, "sha256": _UNKNOWN}}
        end = 0
        for name, (kind, shape) in tensors.items():
            start, end = end, end + _SIZES[kind] * int(np.prod(shape))
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._offsets, self._header = {}, len(text).to_bytes(8, "little") + text
        start = len(self._header)
        for name, (kind, shape) in tensors.items():
            self._offsets[name], start = start, start + _SIZES[kind] * int(np.prod(shape))
        self.continued = self._is_same(start)
        if not self.continued:
            path.unlink(missing_ok=True)
            with path.open("wb") as file:
                file.write(self._header)
                # Reserve the space now, so that a disk that is too small is found before anything is computed.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, start)
                file.truncate(start)
        self._file = path.open("r+b", buffering=0)

    def _is_same(self, size: int) -> bool:
        try:
            with self.path.open("rb") as file:
                return file.read(len(self._header)) == self._header and self.path.stat().st_size == size
        except OSError:
            return False

    def read(self, name: str) -> np.ndarray:
        """A whole tensor of type U8 or I64, which fits into memory."""
        kind, shape = self._tensors[name]
        found = np.empty(shape, _TYPES[kind])
        self._file.seek(self._offsets[name])
        self._file.readinto(memoryview(found).cast("B") if found.size else b"")  # type: ignore[arg-type]
        return found

    def write(self, name: str, values: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Write a tensor, or some of its rows.

        Args:
            name: of the tensor.
            values: as it is stored (m, ...).
            rows: int64 (m,), which rows these are; by default all.
        """
        values = np.ascontiguousarray(values)
        kind, shape = self._tensors[name]
        width = _SIZES[kind] * int(np.prod(shape[1:]))
        rows = np.arange(len(values)) if rows is None else rows
        content = values.reshape(-1).view(np.uint8)
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)] if len(rows) else []
        start = 0
        for end in ends:  # of runs of neighbours
            self._file.seek(self._offsets[name] + int(rows[start]) * width)
            left = content[start * width : end * width].data
            while left:
                left = left[self._file.write(left) :]
            start = end

    def has_rows(self, name: str) -> bool:
        """Whether the rows of a tensor have any numbers."""
        return 0 not in self._tensors[name][1][1:]

    def flush(self) -> None:
        """Wait until everything is on the disk."""
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the checksum, and close the file."""
        place = self._header.rindex(_UNKNOWN.encode())
        digest = _digest(self.path, self._header)
        self._file.seek(place)
        self._file.write(digest.encode())
        self.flush()
        self.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()


def _digest(path: Path, header: bytes) -> str:
    """SHA-256 of a file, with the header as it was before the checksum was known."""
    with path.open("rb") as file:
        file.seek(len(header))
        return hashlib.file_digest(file, lambda: hashlib.sha256(header)).hexdigest()


def check(path: Path) -> None:
    """Raise ValueError or OSError unless a finished file is whole, by its checksum.

    All of it is read if that was never done, or if the file has changed since by what the file system says.
    """
    now = _state(path)
    if read_state(path).get("verified") != now:
        verify(path)
        write_state(path, verified=now)


def mark_whole(path: Path) -> None:
    """Note that a file is as it was just written: `check` does not read it."""
    write_state(path, verified=_state(path))


def verify(path: Path) -> None:
    """Raise ValueError or OSError unless a finished file is whole: all of it is read."""
    text, found = read_header(path)
    stated = found.get("__metadata__", {}).get("sha256", "")
    if not isinstance(stated, str) or len(stated) != 64:
        raise ValueError("it states no checksum")
    written = text.encode()
    header = len(written).to_bytes(8, "little") + written.replace(stated.encode(), _UNKNOWN.encode())
    if _digest(path, header) != stated:
        raise ValueError("its content is not what was written, by its checksum")


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
