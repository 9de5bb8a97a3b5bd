"""Your own images: one folder for each class."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
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
        paths = [path for found in layout.classes for path in found.images]
        return FoundImages(
            ImageFiles(root=self.root, paths=paths, image_size=self.image_size, channels=self.channels),
            [printable(str(path.relative_to(self.root))) for path in paths],
            [found.name for found in layout.classes],
            [len(found.images) for found in layout.classes],
            [found.split for found in layout.classes],
            _contents(layout),
            layout.remarks(),
        )


def _contents(layout: FolderLayout) -> dict[str, Any]:
    sha, count = hashlib.sha256(), 0
    for name, folder, split, images in layout.classes:
        sha.update(json.dumps([name, split, len(images)]).encode())
        count += len(images)
        for path in images:
            try:
                size = path.stat().st_size
            except OSError:
                size = -1
            sha.update(json.dumps([printable(str(path.relative_to(folder))), size]).encode())
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
