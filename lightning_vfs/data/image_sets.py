"""ImageSets, the base class of data sets whose images are decoded into the cache."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import hash_of, replacing
from lightning_vfs.data.decoded import DecodedFiles, UndecodedImages, decoded_files
from lightning_vfs.data.images import ClassImages, DecodedWhenRead, map_images
from lightning_vfs.data.layout import printable
from lightning_vfs.data.module import SPLITS, SetDataModule, Split
from lightning_vfs.data.sources import ImageSource, JoinedSources


class UnreadableImagesWarning(UserWarning):
    """Images that cannot be read are left out."""


@dataclass(frozen=True)
class FoundImages:
    """The images of a data set, by class.

    Attributes:
        source: the images (N), those of a class next to each other.
        names: of the images, for people (N).
        classes: names of the classes.
        counts: images of every class.
        splits: the split of every class, or None if the data does not say.
        contents: what the data consists of, as plain values.
        remarks: lines on what was passed over.
    """

    source: ImageSource
    names: Sequence[str]
    classes: Sequence[str]
    counts: Sequence[int]
    splits: Sequence[Split | None]
    contents: Mapping[str, Any]
    remarks: Sequence[str] = field(default_factory=list)


class ImageSets(SetDataModule):
    """Sets of images that are found in files of some layout and decoded into the cache.

    A subclass finds them, in `find`. Images are turned by their EXIF orientation, put on white where they are
    transparent, cut to the centre square and resized (antialiased).

    Args:
        on_unreadable: `error` if images cannot be read, or `skip` them. All of them are listed in a file.
        cache: decode all images once, into the cache. Otherwise they are decoded whenever they are read, to the same
            pixels, which takes no space, and time in the processes of `num_workers`; an image that cannot be read then
            stops the run when it is met, or, with `skip`, is found by decoding everything once.
        **kwargs: as for `SetDataModule`.

    Raises:
        ConfigError: a value is not allowed.
    """

    may_change = SetDataModule.may_change | {"root", "on_unreadable", "cache"}

    def __init__(self, on_unreadable: Literal["error", "skip"] = "error", cache: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if on_unreadable not in ("error", "skip"):
            raise ConfigError(f"on_unreadable is {on_unreadable!r}; allowed: 'error', 'skip'.")
        self.on_unreadable = on_unreadable
        self.cache = cache
        self._remarks: list[str] = []
        self._contents: dict[str, Any] | None = None

    @abstractmethod
    def find(self) -> FoundImages:
        """Find the images, without decoding them.

        Raises:
            DataError: there are none, or what is there is not such a data set.
        """

    def load(self) -> ClassImages | Mapping[Split, ClassImages]:
        """All images; decoded on first use, then from the cache.

        Warns:
            UnreadableImagesWarning: images cannot be read, and `on_unreadable` is `skip`.

        Raises:
            DataError: what `find` raises, an image cannot be read, or the cache cannot be written.
        """
        found = self.find()
        self._remarks = list(found.remarks)
        self._contents = dict(found.contents)
        everything = self._cached(found) if self.cache else self._uncached(found)
        if not any(found.splits):
            return everything
        return {
            split: everything.select([i for i, of_class in enumerate(found.splits) if of_class == split])
            for split in SPLITS
            if split in found.splits
        }

    def _cached(self, found: FoundImages) -> ClassImages:
        decoded = decoded_files(found.source, self.cache_dir, rank_zero_info)
        rows = self._readable(found.source, decoded)
        return _class_images(found, map_images(decoded.path), decoded.path, rows, decoded.key)

    def _uncached(self, found: FoundImages) -> ClassImages:
        source, rows = found.source, None
        if self.on_unreadable == "skip":
            rows = self._readable(source, decoded_files(source, self.cache_dir, rank_zero_info, keep_images=False))
        advice = "Replace or remove it, or leave such images out with --data.on_unreadable skip."
        key = hash_of(source.settings, source.fingerprints(), source.changed())
        return _class_images(found, UndecodedImages(source, advice), None, rows, key)

    def _readable(self, source: ImageSource, decoded: DecodedFiles) -> np.ndarray | None:
        """Rows of the images that can be read; None for all."""
        if decoded.readable.all():
            return None
        self._judge_unreadable(source, decoded)
        return np.flatnonzero(decoded.readable)

    def remarks(self) -> list[str]:
        return self._remarks

    def contents(self) -> dict[str, Any]:
        """Classes, images, and a key of them: a copy of the data elsewhere has the same."""
        if self._contents is None:
            self._contents = dict(self.find().contents)
        return self._contents

    def _judge_unreadable(self, source: ImageSource, decoded: DecodedFiles) -> None:
        """List what cannot be read in a file, and refuse it or say that it is left out."""
        rows = np.flatnonzero(~decoded.readable).tolist()
        listed = decoded.path.with_suffix(".unreadable.txt")
        reasons = _listed(listed)
        if len(reasons) != len(rows):
            reasons = _reasons(source, rows)
            with contextlib.suppress(OSError), replacing(listed) as temporary:  # the cache may be somebody else's
                temporary.write_text("".join(f"{reason}\n" for reason in reasons))
        found = f"{len(rows):,} of {len(source):,} images cannot be read"
        if self.on_unreadable == "error":
            few = "\n".join(reasons[:10]) + (f"\n... and {len(reasons) - 10:,} more" if len(reasons) > 10 else "")
            raise DataError(
                f"{found} (listed in {listed}):\n{few}\nReplace or remove them, or leave them out with "
                "--data.on_unreadable skip. Decoded images are kept."
            )
        self._remarks.append(f"Left out: {found} (listed in {listed}).")
        rank_zero_warn(f"{found}, and are left out: {listed} lists them.", category=UnreadableImagesWarning)


def _class_images(
    found: FoundImages,
    images: torch.Tensor | DecodedWhenRead,
    mapped: Path | None,
    rows: np.ndarray | None,
    key: str,
) -> ClassImages:
    labels = np.repeat(np.arange(len(found.classes)), found.counts)
    return ClassImages(images, found.classes, labels, found.names, mapped, rows, key)


def _listed(path: Path) -> list[str]:
    """Lines of an earlier listing of what cannot be read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _reasons(source: ImageSource, rows: Sequence[int]) -> list[str]:
    """Why images cannot be read, each in a line."""
    reasons: list[str] = []
    for start in range(0, len(rows), 64):
        some = rows[start : start + 64]
        scratch = np.zeros((len(some), source.channels, source.image_size, source.image_size), dtype=np.uint8)
        reasons += [" ".join(printable(str(error)).split()) for error in source.decode(some, scratch)]
    return reasons


class Collection(Protocol):
    """Images that have names, as those in a folder, an archive or an array have."""

    def source(self, names: Sequence[str], image_size: int, channels: int) -> ImageSource:
        """The images of these names, to be decoded."""


class FoundClass(NamedTuple):
    """A class: its name, the split that the data says it is of, and its images by their names in a collection."""

    name: str
    split: Split | None
    collection: Collection
    images: Sequence[str]


def found_images(
    classes: Iterable[FoundClass], image_size: int, channels: int, remarks: Sequence[str] = ()
) -> FoundImages:
    """The images of classes in folders, archives and arrays, in the order of split and name."""
    order = {split: i for i, split in enumerate([*SPLITS, None])}
    classes = sorted(classes, key=lambda found: (order[found.split], found.name))
    sources = [
        collection.source([name for found in some for name in found.images], image_size, channels)
        for collection, some in itertools.groupby(classes, key=lambda found: found.collection)
    ]
    source = (
        sources[0]
        if len(sources) == 1
        else JoinedSources(root=sources[0].root.parent, image_size=image_size, channels=channels, parts=sources)
    )
    sha = hashlib.sha256()
    for name, split, _, images in classes:
        sha.update(json.dumps([name, split, [printable(image) for image in images]]).encode())
    return FoundImages(
        source,
        [printable(image) for found in classes for image in found.images],
        [found.name for found in classes],
        [len(found.images) for found in classes],
        [found.split for found in classes],
        {"classes": len(classes), "images": len(source), "files": sha.hexdigest()[:16]},
        remarks,
    )
