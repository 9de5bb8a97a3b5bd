"""Decoded images, in the cache: each file is decoded once, whatever interrupts it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open

from lightning_vfs.core.errors import DataError
from lightning_vfs.core.progress import progress
from lightning_vfs.data.cache import warn_of_damage
from lightning_vfs.data.decode import decode_all
from lightning_vfs.data.sources import ImageSource, file_state, fingerprints

CHUNK = 1024
"""Images that are decoded before a progress bar moves, and that an interruption costs at most."""

TO_DECODE, DECODED, UNREADABLE = range(3)


@dataclass(frozen=True, kw_only=True)
class ImageFiles(ImageSource):
    """Files to decode.

    Attributes:
        root: a folder that they are all in.
        paths: the files (N).
    """

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprints(self) -> np.ndarray:
        """(N, 16) uint8: path and state of every file, by what the file system says.

        Reading all contents takes as long as decoding, at every start and on every rank. A changed file may keep its
        size and set back its modification time, but not the time of its last change, st_ctime. The price is that a
        copied data set is decoded again.
        """
        return fingerprints((os.fsencode(path.relative_to(self.root)), file_state(path)) for path in self.paths)

    def decode(self, rows: Sequence[int], out: np.ndarray) -> list[DataError | None]:
        return decode_all([self.paths[row] for row in rows], self.image_size, self.channels, out)


@dataclass(frozen=True)
class DecodedFiles:
    """Images of files, in the cache.

    Attributes:
        path: safetensors file whose tensor `images` they are: uint8 (N, c, h, w), zeros for files that cannot be read.
        readable: bool (N,), whether the image of a file could be read.
    """

    path: Path
    readable: np.ndarray


def decoded_files(files: ImageSource, folder: Path, say: Callable[[str], object]) -> DecodedFiles:
    """The images of files, decoded if they are not in the cache yet.

    While a process decodes, others that need the same images wait. If it is interrupted, the next one continues; if
    files were added or changed since an earlier run, the images of the other files are taken over.

    Args:
        files: what to decode.
        folder: of the cache, which is made if necessary.
        say: is called with a line on what is about to be done, if it takes a while.

    Raises:
        DataError: the cache cannot be written, or the disk is too small.
    """
    marks = files.fingerprints()
    key = hashlib.sha256(marks.tobytes()).hexdigest()[:24]
    path = folder / f"folders-{files.settings}-{key}.safetensors"
    found = _read(path, marks)
    if found is not None:
        return found
    shape = (len(files), files.channels, files.image_size, files.image_size)
    with _explaining(folder, int(np.prod(shape))):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _read(path, marks)  # another process may have been first
            if found is None:
                unfinished = path.with_suffix(".partial")
                tensors = _Tensors(unfinished, shape)
                _decode(files, marks, tensors, _earlier(folder, files.settings, path), say)
                tensors.close()
                unfinished.replace(path)
        path.with_suffix(".lock").unlink(missing_ok=True)
    found = _read(path, marks)
    assert found is not None
    return found


def _decode(
    files: ImageSource, marks: np.ndarray, tensors: _Tensors, earlier: Path | None, say: Callable[[str], object]
) -> None:
    """Fill the tensors, from an earlier cache if it has the images, otherwise from the files."""
    if not (tensors.fingerprints == marks).all():
        tensors.status[:] = TO_DECODE
        tensors.fingerprints[:] = marks
        if earlier is not None:
            _take_over(tensors, earlier)
    rows = files.order(np.flatnonzero(tensors.status == TO_DECODE))
    kept = len(files) - len(rows)
    rest = f" ({kept:,} are decoded already)" if kept else ""
    say(f"Decoding {len(rows):,} images of {files.root} into the cache {tensors.path.parent}{rest} ...")
    bar = progress("Decoding", len(files), "images", unit="image", initial=kept)
    try:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            images = np.zeros((len(chunk), *tensors.images.shape[1:]), dtype=np.uint8)
            errors = files.decode(chunk.tolist(), images)
            tensors.images[chunk] = images
            tensors.status[chunk] = [UNREADABLE if error else DECODED for error in errors]
            bar.update(len(chunk))
    finally:
        bar.close()


def _take_over(tensors: _Tensors, earlier: Path) -> None:
    """Copy images of unchanged files from an earlier cache, finished or not."""
    try:
        with safe_open(earlier, framework="pt") as file:
            images, status = file.get_tensor("images"), file.get_tensor("status").numpy()
            known = {value.tobytes(): row for row, value in enumerate(file.get_tensor("fingerprints").numpy())}
    except (SafetensorError, OSError):  # it is damaged: what it held is decoded again
        return
    old = np.array([known.get(value.tobytes(), -1) for value in tensors.fingerprints])
    rows = np.flatnonzero((old >= 0) & (status[old] == DECODED))
    for chunk in np.array_split(rows, range(CHUNK, len(rows), CHUNK)):
        tensors.images[chunk] = images[torch.from_numpy(old[chunk])].numpy()
    tensors.status[rows] = DECODED


def _earlier(folder: Path, settings: str, path: Path) -> Path | None:
    """The newest other cache of the same settings, finished or not."""
    caches = [found for found in folder.glob(f"folders-{settings}-*") if found.suffix in (".safetensors", ".partial")]
    caches = [found for found in caches if found.stem != path.stem]
    return max(caches, key=lambda found: found.stat().st_mtime, default=None)


class _Tensors:
    """Tensors of a safetensors file that is being written, memory-mapped: images, status, fingerprints.

    An existing file of the right size is continued.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        count = shape[0]
        sizes = {"images": shape, "status": (count,), "fingerprints": (count, 16)}
        header, end = {}, 0
        for name, size in sizes.items():
            start, end = end, end + int(np.prod(size))
            header[name] = {"dtype": "U8", "shape": list(size), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        first = 8 + len(text)
        if not (path.is_file() and path.stat().st_size == first + end):
            path.unlink(missing_ok=True)
            with path.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                # Reserve the space now, so that a disk that is too small is found before anything is decoded.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, first + end)
                file.truncate(first + end)
        self._mapped = np.memmap(path, dtype=np.uint8, mode="r+", offset=first, shape=(end,))
        parts = {n: self._mapped[slice(*header[n]["data_offsets"])].reshape(size) for n, size in sizes.items()}
        self.images, self.status, self.fingerprints = parts["images"], parts["status"], parts["fingerprints"]

    def close(self) -> None:
        """Write everything to the disk."""
        self._mapped.flush()


def _read(path: Path, marks: np.ndarray) -> DecodedFiles | None:
    """What a cache file holds; None if there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            if (file.get_tensor("fingerprints") != marks).any():
                raise ValueError("it belongs to other files")
            status = file.get_tensor("status")
    except (SafetensorError, OSError, ValueError) as error:
        warn_of_damage(path, error)
        path.unlink()
        return None
    return DecodedFiles(path, status == DECODED)


@contextmanager
def _explaining(folder: Path, size: int) -> Iterator[None]:
    """Turn errors of the file system inside into an error that says what to do."""
    try:
        yield
    except OSError as error:
        free = ""
        near = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
        if near is not None:
            free = f", and {shutil.disk_usage(near).free / 2**20:,.0f} MiB are free there"
        raise DataError(
            f"The decoded images cannot be written to the cache {folder}: {error}. They take {size / 2**20:,.0f} "
            f"MiB{free}; choose another folder by --data.cache_dir or the environment variable LIGHTNING_VFS_CACHE."
        ) from error
