"""Images grouped by class, and the episodes that a few-shot evaluation is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import safe_open

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import hash_of
from lightning_vfs.data.cache_folder import Lease
from lightning_vfs.data.draws import sample_distinct


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape to float32 in [-1, 1]: x / 127.5 - 1, on every device the same numbers."""
    # By a number of Python, CUDA would multiply with its reciprocal, which rounds otherwise.
    half = torch.full((), 127.5, dtype=torch.float32, device=images.device)
    return images.float().div_(half).sub_(1)


def map_images(path: Path) -> torch.Tensor:
    """The tensor `images` of a safetensors file: pages are read when they are used, and shared between processes."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("images")


class DecodedWhenRead(ABC):
    """Images that are decoded whenever they are read, in place of a tensor uint8 (N, c, h, w).

    Attributes:
        shape: (N, c, h, w).
    """

    dtype, ndim = torch.uint8, 4
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """Images: int64 (m,) to uint8 (m, c, h, w)."""


@dataclass(frozen=True)
class Episodes:
    """What a few-shot evaluation generates and compares; row i belongs to the global sample index i.

    Indices are those of the split (`ClassImages.float` takes them).

    Attributes:
        targets: (num,) int64, the held-out images.
        supports: (num, shots) int64, distinct other images of the same class, never the target.
        labels: (num,) int64, index of the class in the split.
    """

    targets: np.ndarray
    supports: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def first_of_classes(self, num_classes: int) -> np.ndarray:
        """Rows of the first episode of each of the first `num_classes` classes: int64, ascending."""
        _, first = np.unique(self.labels, return_index=True)
        return np.sort(first)[:num_classes]


class ClassImages:
    """uint8 images grouped by class.

    Args:
        images: uint8 (N, c, h, w), images of a class next to each other; may be memory-mapped, or decoded when read.
        class_names: name of every class.
        labels: int64 (N,), index into `class_names` of every image, in ascending order.
        files: path of every image, for people; None if images are not files.
        mapped: safetensors file whose tensor `images` the images are, or are expanded from. When pickled, as for
            workers that are not forked, they are mapped from it again instead of copied.
        rows: int64 (M,), ascending, the images that count; all by default.
        key: that other pixels do not have; None if it is not known.

    Attributes:
        class_names: name of every class.
        labels: int64 (N,), class of every image, in ascending order.
        mapped: as given.
        counts: int64 (classes,), images of every class.
        offsets: int64 (classes,), index of the first image of every class.

    Raises:
        DataError: the arguments do not fit each other.
    """

    def __init__(
        self,
        images: torch.Tensor | DecodedWhenRead,
        class_names: Sequence[str],
        labels: ArrayLike,
        files: Sequence[str] | None = None,
        mapped: Path | None = None,
        rows: np.ndarray | None = None,
        key: str | None = None,
    ) -> None:
        labels = np.asarray(labels, dtype=np.int64)
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(f"images must be uint8 (N, c, h, w); got {images.dtype} {tuple(images.shape)}.")
        if labels.shape != (len(images),):
            raise DataError(f"labels must be one number per image, {len(images)}; got the shape {labels.shape}.")
        if len(labels) and (labels[0] < 0 or labels[-1] >= len(class_names) or (np.diff(labels) < 0).any()):
            raise DataError(f"labels must be in ascending order, from 0 to {len(class_names) - 1} (classes less one).")
        if files is not None and len(files) != len(images):
            raise DataError(f"files must be one path per image, {len(images)}; got {len(files)}.")
        self._stored: torch.Tensor | DecodedWhenRead = images
        self._files = files
        self.mapped = mapped
        self._lease = None if mapped is None else Lease(mapped)
        self._rows = rows
        self._key = key
        self._turns: np.ndarray | None = None
        self._set_classes(class_names, labels if rows is None else labels[rows])

    def _set_classes(self, class_names: Sequence[str], labels: np.ndarray) -> None:
        self.class_names = tuple(class_names)
        self.labels = labels
        self.counts = np.bincount(labels, minlength=len(class_names))
        self.offsets = np.cumsum(self.counts) - self.counts

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({} if self.mapped is None else {"_stored": self._stored.shape, "_lease": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.mapped is not None:
            self._lease = Lease(self.mapped)
            self._stored = map_images(self.mapped).expand(state["_stored"])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def key(self) -> str | None:
        """What no other images have: equal for equal files, selections and turns; None if it is not known."""
        if self._key is None:
            return None
        rows = np.arange(len(self)) if self._rows is None else self._rows
        turns = np.zeros(0) if self._turns is None else self._turns
        return hash_of(self._key, rows, turns, np.asarray(self._stored.shape))

    @property
    def images(self) -> torch.Tensor:
        """All images, uint8 (N, c, h, w): the stored tensor itself, or a copy if they are selected or turned."""
        if self._turns is not None or isinstance(self._stored, DecodedWhenRead):
            return self.uint8(np.arange(len(self)))
        return self._stored if self._rows is None else self._stored[torch.from_numpy(self._rows)]

    def select(self, class_indices: ArrayLike) -> ClassImages:
        """A subset of the classes, in the order given, over the same stored pixels and paths (nothing is copied)."""
        classes = np.asarray(class_indices, dtype=np.int64)
        return self._select(classes, [self.class_names[i] for i in classes])

    def _select(self, classes: np.ndarray, names: Sequence[str], turns: np.ndarray | None = None) -> ClassImages:
        """Classes under these names; `turns` (classes,) says how often each is turned by 90 degrees, if they are."""
        counts = self.counts[classes]
        labels = np.repeat(np.arange(len(classes)), counts)
        position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.repeat(self.offsets[classes], counts) + position
        selected = object.__new__(ClassImages)
        selected._stored = self._stored
        selected._files, selected._key = self._files, self._key
        selected.mapped, selected._lease = self.mapped, self._lease
        selected._rows = rows if self._rows is None else self._rows[rows]
        selected._turns = turns if turns is None else np.repeat(turns, counts)
        if self._turns is not None:
            selected._turns = self._turns[rows]
        selected._set_classes(names, labels)
        return selected

    def with_turned(self) -> ClassImages:
        """The classes, and after them each turned by 90, 180 and 270 degrees (anticlockwise), as classes of their own.

        Pixels are turned when they are read; nothing is stored twice. A turned class is called `name/rot090` and so on,
        as in the file lists of prototypical networks (Snell et al. 2017) for Omniglot.
        """
        names = [name + suffix for suffix in ("", "/rot090", "/rot180", "/rot270") for name in self.class_names]
        classes = np.tile(np.arange(self.num_classes), 4)
        return self._select(classes, names, np.repeat(np.arange(4, dtype=np.int8), self.num_classes))

    def uint8(self, indices: ArrayLike) -> torch.Tensor:
        """Images as they are stored.

        Args:
            indices: whole numbers of any shape (...,).

        Returns:
            uint8 (..., c, h, w).

        Raises:
            IndexError: an index is not that of an image.
        """
        index = np.asarray(indices, dtype=np.int64)
        rows = index if self._rows is None else self._rows[index]
        pixels = self._stored[torch.from_numpy(rows.reshape(-1))]
        if self._turns is not None:
            turns = self._turns[index].reshape(-1)
            for turn in (1, 2, 3):
                chosen = torch.from_numpy(np.flatnonzero(turns == turn))
                pixels[chosen] = pixels[chosen].rot90(turn, (-2, -1))
        return pixels.reshape(*index.shape, *self._stored.shape[1:])

    def float(self, indices: ArrayLike) -> torch.Tensor:
        """Images as a model takes them: float32 (..., c, h, w) in [-1, 1]; otherwise as `uint8`."""
        return to_float(self.uint8(indices))

    def name_of(self, index: int) -> str:
        """An image's file; without files its class, and its number there, counted from 0.

        Raises:
            IndexError: there is no such image.
        """
        label = self.labels[index]
        if self._files is None:
            return f"image {index - self.offsets[label]} of {self.class_names[label]}"
        file = self._files[index if self._rows is None else self._rows[index]]
        turn = 0 if self._turns is None else int(self._turns[index])
        return f"{file}, turned by {90 * turn} degrees" if turn else file

    def episodes(self, num_images: int, shots: int, seed: int) -> Episodes:
        """Draw what a few-shot evaluation generates: held-out images, each with a support of its class.

        Targets are a permutation of all images, so that they are distinct and their classes follow the data; when
        more are asked for than there are, another permutation follows. Row i depends on the images, `shots` and
        `seed` only: the first rows of a longer evaluation are those of a shorter one.

        Args:
            num_images: number of episodes.
            shots: images in a support (k).
            seed: not negative.

        Raises:
            ConfigError: `num_images`, `shots` or `seed` is impossible.
            DataError: a class has too few images for a target and a support.
        """
        if num_images < 1 or shots < 1 or seed < 0:
            raise ConfigError(
                f"episodes: num_images is {num_images}, shots {shots} and seed {seed}; "
                "num_images and shots must be at least 1, and the seed not negative."
            )
        if not len(self):
            raise DataError("There are no images to draw episodes from.")
        too_small = np.flatnonzero((self.counts > 0) & (self.counts <= shots))
        if len(too_small):
            few = ", ".join(f"{self.class_names[i]} ({self.counts[i]})" for i in too_small[:10])
            raise DataError(
                f"A support of {shots} and a held-out image need {shots + 1} images of a class; "
                f"{len(too_small)} of {self.num_classes} classes have fewer: {few}. Ask for fewer shots."
            )
        rounds = -(-num_images // len(self))
        permutations = [np.random.default_rng((seed, r)).permutation(len(self)) for r in range(rounds)]
        targets = np.concatenate(permutations)[:num_images]
        labels = self.labels[targets]
        offsets = self.offsets[labels]
        # Three numbers, so that this stream is none of the permutations'.
        others = sample_distinct(self.counts[labels] - 1, shots, np.random.default_rng((seed, shots, 1)))
        others += others >= (targets - offsets)[:, None]
        return Episodes(targets=targets, supports=offsets[:, None] + others, labels=labels)
