"""Where images come from: files, members of archives, rows of tables."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.decode import DECODING, centre_square, decode_rows


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
        content = [os.fsencode(self.root.absolute()).hex(), self.image_size, self.channels, DECODING, PIL.__version__]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]

    @abstractmethod
    def __len__(self) -> int:
        """Number of images (N)."""

    @abstractmethod
    def fingerprints(self) -> np.ndarray:
        """(N, 16) uint8: name and state of every image, found without decoding it; others if it has changed."""

    @abstractmethod
    def decode(self, rows: Sequence[int], out: np.ndarray) -> list[DataError | None]:
        """Decode some images.

        Args:
            rows: which images (m).
            out: uint8 (m, channels, image_size, image_size), which they are written to; zeros for those with an error.

        Returns:
            What is wrong with each image, if anything.
        """

    def order(self, rows: np.ndarray) -> np.ndarray:
        """The rows, int64 (m,), in the order in which they are read fastest."""
        return rows


def fingerprints(images: Iterable[tuple[bytes, str]]) -> np.ndarray:
    """(N, 16) uint8, made of the name and the state of every image."""
    digests = [hashlib.sha256(name + b"\0" + state.encode()).digest()[:16] for name, state in images]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)


def file_state(path: Path) -> str:
    """What the file system says of a file, which changes with its content."""
    try:
        status = path.stat()
    except OSError as error:
        return f"errno {error.errno}"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


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

    def decode(self, rows: Sequence[int], out: np.ndarray) -> list[DataError | None]:
        errors: list[DataError | None] = [None] * len(rows)
        for mine, part, start in self._parts(np.asarray(rows)):
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
