"""ImageSets, the base class of data sets whose images are decoded into the cache."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import replacing
from lightning_vfs.data.decoded import DecodedFiles, decoded_files
from lightning_vfs.data.images import ClassImages, map_images
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
        **kwargs: as for `SetDataModule`.

    Raises:
        ConfigError: a value is not allowed.
    """

    may_change = SetDataModule.may_change | {"root", "on_unreadable"}

    def __init__(self, on_unreadable: Literal["error", "skip"] = "error", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if on_unreadable not in ("error", "skip"):
            raise ConfigError(f"on_unreadable is {on_unreadable!r}; allowed: 'error', 'skip'.")
        self.on_unreadable = on_unreadable
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
        decoded = decoded_files(found.source, self.cache_dir, rank_zero_info)
        self._remarks = list(found.remarks)
        self._contents = dict(found.contents)
        if not decoded.readable.all():
            self._judge_unreadable(found.source, decoded)
        everything = ClassImages(
            map_images(decoded.path),
            found.classes,
            np.repeat(np.arange(len(found.classes)), found.counts),
            found.names,
            decoded.path,
            None if decoded.readable.all() else np.flatnonzero(decoded.readable),
        )
        if not any(found.splits):
            return everything
        return {
            split: everything.select([i for i, of_class in enumerate(found.splits) if of_class == split])
            for split in SPLITS
            if split in found.splits
        }

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
        scratch = np.zeros((len(rows), source.channels, source.image_size, source.image_size), dtype=np.uint8)
        reasons = [printable(str(error)) for error in source.decode(rows, scratch)]
        with replacing(listed) as temporary:
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
