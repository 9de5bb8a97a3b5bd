"""Where images come from: files, members of archives, rows of tables."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.decode import DECODING, PILLOW, centre_square, decode_opened, decode_rows

AT_ONCE = 64
"""Encoded images that are in memory before they are decoded."""

FORMAT = 2
"""Version of what identifies images and their states; raise it when that changes."""


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """Images to decode, in an order that stays the same, and all that decides what comes of them.

    Attributes:
        root: the file or folder that they are in.
        image_size, channels: of the decoded images.
    """

    root: Path
    image_size: int
    channels: int

    @property
    def settings(self) -> str:
        """Eight digits that distinguish caches which cannot share decoded images."""
        content = [os.fsencode(self.root.absolute()).hex(), self.image_size, self.channels, DECODING, PILLOW, FORMAT]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]

    @abstractmethod
    def __len__(self) -> int:
        """Number of images (N)."""

    @abstractmethod
    def fingerprints(self) -> np.ndarray:
        """(N, 16) uint8: name and state of every image, found without reading it; others if it has changed."""

    @abstractmethod
    def decode(self, rows: Sequence[int], out: np.ndarray) -> list[DataError | None]:
        """Decode some images.

        Args:
            rows: which images (m).
            out: uint8 (m, channels, image_size, image_size), which they are written to; zeros for those with an error.

        Returns:
            What is wrong with each image, if anything.
        """

    def changed(self) -> np.ndarray:
        """int64 (N,), time of the last change of every file's status in nanoseconds; 0 where the state says all.

        A file may be replaced by another of the same size, with its time of modification set back, but not this time.
        It changes too when a file is merely copied or linked: `digests` then say whether its content is the same.
        """
        return np.zeros(len(self), dtype=np.int64)

    def digests(self, rows: Sequence[int]) -> np.ndarray:
        """uint8 (m, 16), hashes of the files of some images, which are read; zeros where the state says all."""
        return np.zeros((len(rows), 16), dtype=np.uint8)

    def order(self, rows: np.ndarray) -> np.ndarray:
        """The rows, int64 (m,), in the order in which they are read fastest."""
        return rows


def fingerprints(images: Iterable[tuple[bytes, str]]) -> np.ndarray:
    """(N, 16) uint8, made of the name and the state of every image."""
    digests = [hashlib.sha256(name + b"\0" + state.encode()).digest()[:16] for name, state in images]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)


def file_state(path: Path) -> str:
    """What the file system says of a file: other content of the same size and time of modification is not noticed."""
    try:
        status = path.stat()
    except OSError as error:
        return f"errno {error.errno}"
    return f"{status.st_size} {status.st_mtime_ns}"


class EncodedFiles(Protocol):
    """Image files that are no files of their own, such as members of an archive, by their names."""

    def title(self, name: str) -> str:
        """What messages call it."""

    def state(self, name: str) -> str:
        """What changes with its content."""

    def position(self, name: str) -> int:
        """They are read fastest in this order."""

    def contents(self, names: Sequence[str]) -> list[bytes | DataError]:
        """The bytes of some, or what is wrong with them."""


@dataclass(frozen=True, kw_only=True)
class EncodedImages(ImageSource):
    """Image files that are no files of their own.

    Attributes:
        files: has them.
        names: which of them these are (N).
    """

    files: EncodedFiles
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def fingerprints(self) -> np.ndarray:
        return fingerprints((os.fsencode(name), self.files.state(name)) for name in self.names)

    def order(self, rows: np.ndarray) -> np.ndarray:
        positions = np.array([self.files.position(self.names[row]) for row in rows], dtype=np.int64)
        return rows[np.argsort(positions, kind="stable")]

    def decode(self, rows: Sequence[int], out: np.ndarray) -> list[DataError | None]:
        errors: list[DataError | None] = []
        for first in range(0, len(rows), AT_ONCE):
            names = [self.names[row] for row in rows[first : first + AT_ONCE]]
            decoded = functools.partial(self._decoded, names, self.files.contents(names))
            errors += decode_rows(decoded, out[first : first + AT_ONCE])
        return errors

    def _decoded(self, names: Sequence[str], contents: Sequence[bytes | DataError], i: int) -> np.ndarray:
        content = contents[i]
        if isinstance(content, DataError):
            raise content
        title = self.files.title(names[i])
        return decode_opened(title, lambda: BytesIO(content), self.image_size, self.channels)


@dataclass(frozen=True, kw_only=True)
class ArrayImages(ImageSource):
    """Rows of an array of RGB images.

    Attributes:
        array: uint8 (M, h, w, 3).
        rows: which of them these are (N).
        state: what changes with the array.
    """

    array: np.ndarray
    rows: Sequence[int]
    state: str

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprints(self) -> np.ndarray:
        return fingerprints((str(row).encode(), self.state) for row in self.rows)

    def decode(self, rows: Sequence[int], out: np.ndarray) -> list[DataError | None]:
        mode = "L" if self.channels == 1 else "RGB"

        def decoded(i: int) -> np.ndarray:
            image = Image.fromarray(self.array[self.rows[rows[i]]])
            return centre_square(image.convert(mode), self.image_size)

        return decode_rows(decoded, out)


class ImageArray:
    """An array of RGB images, uint8 (M, h, w, 3), from a file whose state says when it changes; names are numbers."""

    def __init__(self, path: Path, array: np.ndarray, state: str) -> None:
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise DataError(f"{path} must hold images as uint8 (N, h, w, 3); it has {array.dtype} {array.shape}.")
        self.path, self.array, self.state = path, array, state

    def source(self, names: Sequence[str], image_size: int, channels: int) -> ImageSource:
        """The images of these numbers, to be decoded."""
        rows = [int(name) for name in names]
        return ArrayImages(
            root=self.path, image_size=image_size, channels=channels, array=self.array, rows=rows, state=self.state
        )


@dataclass(frozen=True, kw_only=True)
class JoinedSources(ImageSource):
    """The images of several sources, one after the other."""

    parts: Sequence[ImageSource]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def fingerprints(self) -> np.ndarray:
        return np.concatenate([part.fingerprints() for part in self.parts])

    def changed(self) -> np.ndarray:
        return np.concatenate([part.changed() for part in self.parts])

    def digests(self, rows: Sequence[int]) -> np.ndarray:
        found = np.zeros((len(rows), 16), dtype=np.uint8)
        for mine, part, start in self._parts(np.asarray(rows, dtype=np.int64)):
            found[mine] = part.digests([rows[i] - start for i in mine])
        return found

    def decode(self, rows: Sequence[int], out: np.ndarray) -> list[DataError | None]:
        errors: list[DataError | None] = [None] * len(rows)
        for mine, part, start in self._parts(np.asarray(rows, dtype=np.int64)):
            images = np.zeros((len(mine), *out.shape[1:]), dtype=np.uint8)
            found = part.decode([rows[i] - start for i in mine], images)
            out[mine] = images
            for i, error in zip(mine, found, strict=True):
                errors[i] = error
        return errors

    def order(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([part.order(rows[mine] - start) + start for mine, part, start in self._parts(rows)])

    def _parts(self, rows: np.ndarray) -> Iterable[tuple[np.ndarray, ImageSource, int]]:
        """For every part which of the rows are of it, and the number of its first row."""
        start = 0
        for part in self.parts:
            yield np.flatnonzero((rows >= start) & (rows < start + len(part))), part, start
            start += len(part)
