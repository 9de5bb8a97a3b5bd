"""Decoded images, in the cache: each file is decoded once, whatever interrupts it."""

from __future__ import annotations

import hashlib
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
from lightning_vfs.core.files import try_folder
from lightning_vfs.core.progress import progress
from lightning_vfs.data.cache import describe, warn_of_damage
from lightning_vfs.data.cache_folder import FOLDER, Lease, make_space, mark_used, read_state, readable, write_state
from lightning_vfs.data.decode import decode_all
from lightning_vfs.data.images import DecodedWhenRead
from lightning_vfs.data.sources import ImageSource, fingerprints
from lightning_vfs.data.tensor_file import TensorFile, check, mark_whole

CHUNK = 1024
"""Images that are decoded before a progress bar moves, and that an interruption costs at most."""

CHUNK_BYTES = 2**26
"""Bytes of decoded images that are in memory, if that is less."""

TO_DECODE, DECODED, UNREADABLE = range(3)


@dataclass(frozen=True, kw_only=True)
class ImageFiles(ImageSource):
    """Files to decode.

    Attributes:
        names: paths of the files below the root (N).
        states: int64 (N, 3), what the file system says of them, as in `layout.ClassFolder`; None if it is to be asked.
    """

    names: Sequence[str]
    states: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def _states(self) -> np.ndarray:
        if self.states is not None:
            return self.states
        found = np.zeros((len(self), 3), dtype=np.int64)
        for row, name in enumerate(self.names):
            try:
                status = os.stat(self.root / name)
                found[row] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
            except OSError as error:
                found[row, 0] = -(error.errno or 1)
        object.__setattr__(self, "states", found)
        return found

    def fingerprints(self) -> np.ndarray:
        """(N, 16) uint8: path, size and time of the last modification of every file."""
        states = self._states()[:, :2].tolist()
        return fingerprints((os.fsencode(name), f"{a} {b}") for name, (a, b) in zip(self.names, states, strict=True))

    def changed(self) -> np.ndarray:
        return self._states()[:, 2]

    def digests(self, rows: Sequence[int]) -> np.ndarray:
        found = np.zeros((len(rows), 16), dtype=np.uint8)
        for i, row in enumerate(rows):
            try:
                with open(self.root / self.names[row], "rb") as file:
                    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
            except OSError:
                continue
            found[i] = np.frombuffer(digest, dtype=np.uint8)
        return found

    def decode(self, rows: Sequence[int], out: np.ndarray) -> list[DataError | None]:
        return decode_all([self.root / self.names[row] for row in rows], self.image_size, self.channels, out)


@dataclass(frozen=True)
class DecodedFiles:
    """Images of files, in the cache.

    Attributes:
        path: safetensors file whose tensor `images` they are: uint8 (N, c, h, w), zeros for files that cannot be read.
        readable: bool (N,), whether the image of a file could be read.
        key: the checksum of the file.
        lease: keeps the file.
    """

    path: Path
    readable: np.ndarray
    key: str
    lease: Lease


def decoded_files(
    files: ImageSource, folder: Path, say: Callable[[str], object], *, keep_images: bool = True
) -> DecodedFiles:
    """The images of files, decoded if they are not in the cache yet.

    While a process decodes, others that need the same images wait. If it is interrupted, the next one continues; if
    files were added or changed since an earlier run, the images of the other files are taken over. Memory does not
    grow with the number of images, but for about 200 bytes of each.

    A changed file is known by its size and time of modification; one of equal size whose time was set back by its
    content, which is read if its status has changed since.

    Args:
        files: what to decode.
        folder: of the cache, which is made if necessary.
        say: is called with a line on what is about to be done, if it takes a while.
        keep_images: otherwise only what can be read is found and kept.

    Raises:
        DataError: the cache cannot be written, or the disk is too small.
    """
    marks, changed = files.fingerprints(), files.changed()
    key = hashlib.sha256(marks.tobytes()).hexdigest()[:24]
    path = folder / f"{'folders' if keep_images else 'readable'}-{files.settings}-{key}.safetensors"

    def stored() -> DecodedFiles | None:
        found = _read(path, marks)
        return found if found is not None and _is_current(files, changed, path) else None

    found = stored()
    if found is not None:
        return found
    shape = (len(files), files.channels, files.image_size, files.image_size) if keep_images else (len(files), 0)
    size = int(np.prod(shape))
    with _explaining(folder, size):
        try_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = stored()  # another process may have been first
            if found is None:
                unfinished, earlier = path.with_suffix(".partial"), _earlier(folder, path)
                kept = None if earlier is None else Lease(earlier)
                make_space(folder, 0 if unfinished.exists() else size, say)
                tensors = _tensors(unfinished, files, shape)
                try:
                    _decode(files, marks, changed, tensors, earlier, say)
                    tensors.finish()
                finally:
                    tensors.close()
                    del kept
                path.with_suffix(".unreadable.txt").unlink(missing_ok=True)
                unfinished.replace(path)
                mark_whole(path)
                write_state(path, newest=int(changed.max(initial=0)))
        path.with_suffix(".lock").unlink(missing_ok=True)
    found = found or _read(path, marks)
    assert found is not None
    return found


def _tensors(path: Path, files: ImageSource, shape: tuple[int, ...]) -> TensorFile:
    count = len(files)
    about = describe((count, files.channels, files.image_size, files.image_size))
    layout = {"images": ("U8", shape), "status": ("U8", (count,))}
    layout |= {name: ("U8", (count, 16)) for name in ("fingerprints", "digests")}
    source = os.fsencode(files.root.absolute()).decode(errors="backslashreplace")
    return TensorFile(path, layout, {"about": about if len(shape) > 2 else f"readable of {about}", "source": source})


def _decode(
    files: ImageSource,
    marks: np.ndarray,
    changed: np.ndarray,
    tensors: TensorFile,
    earlier: Path | None,
    say: Callable[[str], object],
) -> None:
    """Fill the tensors, from an earlier cache if it has the images, otherwise from the files."""
    if not (tensors.read("fingerprints") == marks).all():
        tensors.write("status", np.full(len(files), TO_DECODE, dtype=np.uint8))
        tensors.write("fingerprints", marks)
        if earlier is not None:
            _take_over(files, marks, changed, tensors, earlier)
    rows = files.order(np.flatnonzero(tensors.read("status") == TO_DECODE))
    kept = len(files) - len(rows)
    rest = f" ({kept:,} are decoded already)" if kept else ""
    say(f"Decoding {len(rows):,} images of {files.root} into the cache {tensors.path.parent}{rest} ...")
    image = (files.channels, files.image_size, files.image_size)
    at_once = max(1, min(CHUNK, CHUNK_BYTES // int(np.prod(image))))
    bar = progress("Decoding", len(files), "images", unit="image", initial=kept)
    try:
        for start in range(0, len(rows), at_once):
            chunk = rows[start : start + at_once]
            images = np.zeros((len(chunk), *image), dtype=np.uint8)
            errors = files.decode(chunk.tolist(), images)
            digests = files.digests(chunk.tolist())
            status = np.array([UNREADABLE if error else DECODED for error in errors], dtype=np.uint8)
            _store(tensors, np.sort(chunk), images[np.argsort(chunk)], digests[np.argsort(chunk)])
            tensors.write("status", status[np.argsort(chunk)], np.sort(chunk))
            bar.update(len(chunk))
    finally:
        bar.close()


def _store(tensors: TensorFile, rows: np.ndarray, images: np.ndarray, digests: np.ndarray) -> None:
    """Write images and digests of rows (m,), ascending, before their status says that they are there."""
    if tensors.has_rows("images"):
        tensors.write("images", images, rows)
    tensors.write("digests", digests, rows)
    tensors.flush()


def _take_over(files: ImageSource, marks: np.ndarray, changed: np.ndarray, tensors: TensorFile, earlier: Path) -> None:
    """Copy images of unchanged files from an earlier cache, finished or not."""
    try:
        with safe_open(earlier, framework="np") as file:
            status, known = file.get_tensor("status"), file.get_tensor("fingerprints")
            digests = file.get_tensor("digests")
            images = file.get_slice("images")
            rows, old = _matching(marks, known)
            rows, old = (part[status[old] == DECODED] for part in (rows, old))
            newest = read_state(earlier).get("newest", -1)
            doubtful = np.flatnonzero(changed[rows] > newest)
            same = np.ones(len(rows), dtype=bool)
            same[doubtful] = (files.digests(rows[doubtful].tolist()) == digests[old[doubtful]]).all(axis=1)
            rows, old = rows[same], old[same]
            at_once = max(1, min(CHUNK, CHUNK_BYTES // max(1, int(np.prod(images.get_shape()[1:])))))
            for start in range(0, len(rows), at_once):
                mine, theirs = rows[start : start + at_once], old[start : start + at_once]
                low = int(theirs.min())
                block = images[low : int(theirs.max()) + 1] if np.ptp(theirs) < 4 * at_once else None
                pixels = (
                    block[theirs - low] if block is not None else np.concatenate([images[i : i + 1] for i in theirs])
                )
                _store(tensors, mine, pixels, digests[theirs])
                tensors.write("status", np.full(len(mine), DECODED, dtype=np.uint8), mine)
    except (SafetensorError, OSError, ValueError):  # it is damaged: what it held is decoded again
        return


def _matching(marks: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `marks` that `known` has too, ascending, and their rows there; both uint8 (_, 16), each row once."""
    ours, others = (np.ascontiguousarray(each).view("S16").reshape(-1) for each in (marks, known))
    _, mine, theirs = np.intersect1d(ours, others, return_indices=True)
    order = np.argsort(mine)
    return mine[order], theirs[order]


def _is_current(files: ImageSource, changed: np.ndarray, path: Path) -> bool:
    """Whether a cache holds what is in the files, by their content where their status has changed since."""
    newest = read_state(path).get("newest", -1)
    rows = np.flatnonzero(changed > newest)
    if len(rows) == 0:
        return True
    with safe_open(path, framework="np") as file:
        digests, status = file.get_tensor("digests"), file.get_tensor("status")
    if (status[rows] != DECODED).any() or (files.digests(rows.tolist()) != digests[rows]).any():
        return False
    write_state(path, newest=int(changed.max()))
    return True


def _earlier(folder: Path, path: Path) -> Path | None:
    """A cache of the same settings to take images from: an outdated one of this name, else the newest other one."""
    if path.exists():
        return path
    prefix = path.name.rsplit("-", 1)[0]
    caches = [found for found in folder.glob(f"{prefix}-*") if found.suffix in (".safetensors", ".partial")]
    caches = [found for found in caches if found.stem != path.stem]
    return max(caches, key=lambda found: found.stat().st_mtime, default=None)


def _read(path: Path, marks: np.ndarray) -> DecodedFiles | None:
    """What a cache file holds; None if there is none, or a damaged one."""
    try:
        lease = Lease(path)
    except OSError:
        return None
    try:
        check(path)
        with safe_open(path, framework="np") as file:
            if (file.get_tensor("fingerprints") != marks).any():
                raise ValueError("it belongs to other files")
            status, checksum = file.get_tensor("status"), file.metadata()["sha256"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        warn_of_damage(path, error)
        path.unlink()
        return None
    mark_used(path.with_suffix(".json"))
    return DecodedFiles(path, status == DECODED, checksum, lease)


class UndecodedImages(DecodedWhenRead):
    """Images of a source that are decoded whenever they are read, in place of a tensor uint8 (N, c, h, w).

    Args:
        source: the images.
        advice: what to do about an image that cannot be read.
    """

    def __init__(self, source: ImageSource, advice: str) -> None:
        self.source, self.advice = source, advice
        self.shape = (len(source), source.channels, source.image_size, source.image_size)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Decode images: int64 (m,) to uint8 (m, c, h, w).

        Raises:
            IndexError: there is no such image.
            DataError: an image cannot be read.
        """
        index = rows.numpy()
        if len(index) and not -len(self.source) <= index.min() <= index.max() < len(self.source):
            raise IndexError(f"there are {len(self.source)} images; got the indices {index.min()} to {index.max()}")
        unique, inverse = np.unique(index % max(1, len(self.source)), return_inverse=True)
        order = self.source.order(unique)
        images = np.zeros((len(unique), *self.shape[1:]), dtype=np.uint8)
        errors = self.source.decode(order.tolist(), images)
        if first := next((error for error in errors if error), None):
            raise DataError(f"{first}. {self.advice}")
        back = np.empty_like(order)
        back[np.searchsorted(unique, order)] = np.arange(len(order))
        return torch.from_numpy(images[back[inverse]])


@contextmanager
def _explaining(folder: Path, size: int) -> Iterator[None]:
    """Turn errors of the file system inside into an error that says what to do."""
    try:
        yield
    except OSError as error:
        free = ""
        near = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
        if near is not None:
            free = f", and {readable(shutil.disk_usage(near).free)} are free there"
        raise DataError(
            f"The decoded images cannot be written to the cache {folder}: {error}. They take {readable(size)}{free}; "
            f"choose another folder by --data.cache_dir or the environment variable {FOLDER}, or decode them whenever "
            "they are read, by --data.cache false."
        ) from error
