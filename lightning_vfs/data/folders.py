"""Your own images: one folder for each class."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lightning_vfs.core.errors import DataError
from lightning_vfs.core.files import local_path
from lightning_vfs.data.decode import decode_all, is_image
from lightning_vfs.data.decoded import ImageFiles
from lightning_vfs.data.image_sets import FoundImages, ImageSets
from lightning_vfs.data.images import to_float
from lightning_vfs.data.layout import FolderLayout, contents, find_classes, no_such, printable

_PLAIN = re.compile(r"[ !#-\[\]-~]*")
"""Text that JSON writes as it is."""


class FolderSets(ImageSets):
    """Sets of the images in a folder: one subfolder for each class, which gives the class its name.

    Below a class's folder every image counts, in deeper folders too, each real file once; other files and hidden ones
    do not, and `describe` says what was passed over. Formats are the pictures that Pillow reads. Images are turned by
    their EXIF orientation, put on white where they are transparent, cut to the centre square and resized (antialiased).

    Classes are split by `split_seed`, unless the folder holds `train/` (or `Training/`), with the classes in it, and
    perhaps `val/` (`valid/`, `validation/`, `dev/`) and `test/` (`testing/`): then these are the splits. Of `val` and
    `test`, one that is missing is taken from the classes of `train`, by `split_seed` and its share in
    `split_fractions`.

    Args:
        root: the folder.
        class_level: how deep the folders of classes are: 1 for `cat/1.png`, 2 for `Greek/alpha/1.png`, whose class is
            `Greek/alpha`. By default 1; if that is not clear, an error asks for it.
        on_unreadable: `error` if images cannot be read, or `skip` them. All of them are listed in a file.
        **kwargs: as for `SetDataModule`.

    Raises:
        ConfigError: a value is not allowed.
    """

    may_change = ImageSets.may_change | {"class_level"}

    def __init__(
        self,
        root: str,
        class_level: int | None = None,
        on_unreadable: Literal["error", "skip"] = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(on_unreadable=on_unreadable, **kwargs)
        self.root = local_path(root, "root")
        self.class_level = class_level

    def find(self) -> FoundImages:
        """Find the classes and their images.

        Raises:
            DataError: there is no such folder, or it holds no classes.
        """
        layout = find_classes(self.root, self.class_level)
        names = FileNames(self.root, layout)
        states = np.concatenate([found.states for found in layout.classes])
        return FoundImages(
            ImageFiles(root=self.root, names=names, states=states, image_size=self.image_size, channels=self.channels),
            PrintableNames(names),
            [found.name for found in layout.classes],
            [len(found.images) for found in layout.classes],
            [found.split for found in layout.classes],
            contents_of(layout),
            layout.remarks(),
        )


class FileNames(Sequence[str]):
    """Paths below the root of all images of all classes, put together when they are asked for."""

    def __init__(self, root: Path, layout: FolderLayout) -> None:
        self._folders = [str(found.folder.relative_to(root)) for found in layout.classes]
        self._images = [found.images for found in layout.classes]
        self._ends = list(itertools.accumulate(map(len, self._images)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[str]:
        for folder, images in zip(self._folders, self._images, strict=True):
            for image in images:
                yield f"{folder}/{image}"

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(f"there are {len(self)} images; got the index {row}")
        place = bisect.bisect_right(self._ends, row)
        return f"{self._folders[place]}/{self._images[place][row - self._ends[place]]}"


class PrintableNames(Sequence[str]):
    """Names of files as text that can be printed, made when they are asked for."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: Any) -> Any:
        return printable(self._names[row])


def contents_of(layout: FolderLayout) -> dict[str, Any]:
    """What a folder consists of: number of classes and images, and a hash of names and sizes."""
    sha, count = hashlib.sha256(), 0
    for name, _, split, images, states in layout.classes:
        sha.update(json.dumps([name, split, len(images)]).encode())
        count += len(images)
        for image, size in zip(images, states[:, 0].tolist(), strict=True):
            name, size = printable(image), max(size, -1)
            # What json.dumps gives, which takes four times as long; there may be a million.
            text = f'["{name}", {size}]' if _PLAIN.fullmatch(name) else json.dumps([name, size])
            sha.update(text.encode())
    return {"classes": len(layout.classes), "images": count, "files": sha.hexdigest()[:16]}


def support_files(paths_or_folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Files of a support: those given, or the images of a folder in the order of their names.

    Raises:
        DataError: there is no such file or folder, or no image in it.
    """
    if isinstance(paths_or_folder, str | os.PathLike):
        folder = local_path(paths_or_folder, "The support")
        paths = [p for p in sorted(folder.iterdir()) if p.is_file() and is_image(p)] if folder.is_dir() else [folder]
        if not paths:
            raise DataError(
                f"There is no image in {folder}: it holds {contents(folder)}. Give the folder of one class."
            )
    else:
        paths = [local_path(path, "The support") for path in paths_or_folder]
        if not paths:
            raise DataError("A support needs at least one image, and none was given.")
    for path in paths:
        if not path.exists():
            raise DataError(no_such(path))
    return paths


def draw_support(files: Sequence[Path], most: int, seed: int) -> list[Path]:
    """As many files as a model takes: all, or `most` of them, drawn by seed, in their order."""
    if len(files) <= most:
        return list(files)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(files))[:most])
    return [files[i] for i in chosen]


def load_support(
    paths_or_folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], image_size: int, channels: int
) -> torch.Tensor:
    """The images that condition a generation, decoded as `FolderSets` does.

    Args:
        paths_or_folder: image files, or a folder, whose images are taken in the order of their names.
        image_size: height and width of an image in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        float32 (k, channels, image_size, image_size) in [-1, 1].

    Raises:
        DataError: there is no such file or folder, no image in it, or one that cannot be read.
    """
    paths = support_files(paths_or_folder)
    images = np.zeros((len(paths), channels, image_size, image_size), dtype=np.uint8)
    errors = [error for error in decode_all(paths, image_size, channels, images) if error]
    if errors:
        raise DataError(
            f"{len(errors)} of {len(paths)} images cannot be read. Replace or remove:\n"
            + "\n".join(map(str, errors[:10]))
        )
    return to_float(torch.from_numpy(images))
