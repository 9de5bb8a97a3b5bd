"""Your own images: one folder for each class."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import local_path, replacing
from lightning_vfs.data.decode import DECODING, decode_all, is_image
from lightning_vfs.data.decoded import DecodedFiles, ImageFiles, decoded_files
from lightning_vfs.data.images import ClassImages, map_images, to_float
from lightning_vfs.data.layout import FolderLayout, contents, find_classes, no_such, printable
from lightning_vfs.data.module import SPLITS, SetDataModule, Split


class UnreadableImagesWarning(UserWarning):
    """Images that cannot be read are left out."""


class FolderSets(SetDataModule):
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

    may_change = SetDataModule.may_change | {"root", "class_level", "on_unreadable"}

    def __init__(
        self,
        root: str,
        class_level: int | None = None,
        on_unreadable: Literal["error", "skip"] = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_unreadable not in ("error", "skip"):
            raise ConfigError(f"on_unreadable is {on_unreadable!r}; allowed: 'error', 'skip'.")
        self.root = local_path(root, "root")
        self.class_level = class_level
        self.on_unreadable = on_unreadable
        self._remarks: list[str] = []
        self._contents: dict[str, Any] | None = None

    def load(self) -> ClassImages | Mapping[Split, ClassImages]:
        """All images; decoded on first use, then from the cache.

        Warns:
            UnreadableImagesWarning: images cannot be read, and `on_unreadable` is `skip`.

        Raises:
            DataError: there is no such folder, it holds no classes, an image cannot be read, or the cache cannot be
                written.
        """
        layout = find_classes(self.root, self.class_level)
        paths = [path for found in layout.classes for path in found.images]
        files = ImageFiles(self.root, paths, self.image_size, self.channels, (DECODING, PIL.__version__))
        decoded = decoded_files(files, self.cache_dir, rank_zero_info)
        self._remarks = layout.remarks()
        self._contents = _contents(layout)
        if not decoded.readable.all():
            self._judge_unreadable(files, decoded)
        everything = _class_images(layout, files, decoded)
        splits = {split for found in layout.classes if (split := found.split)}
        if not splits:
            return everything
        return {
            split: everything.select([i for i, found in enumerate(layout.classes) if found.split == split])
            for split in SPLITS
            if split in splits
        }

    def remarks(self) -> list[str]:
        return self._remarks

    def contents(self) -> dict[str, Any]:
        """Classes, images, and a key of their names, files and sizes: a copy of the folder elsewhere has the same."""
        if self._contents is None:
            self._contents = _contents(find_classes(self.root, self.class_level))
        return self._contents

    def _judge_unreadable(self, files: ImageFiles, decoded: DecodedFiles) -> None:
        """List what cannot be read in a file, and refuse it or say that it is left out."""
        paths = [files.paths[row] for row in np.flatnonzero(~decoded.readable).tolist()]
        listed = decoded.path.with_suffix(".unreadable.txt")
        scratch = np.zeros((len(paths), files.channels, files.image_size, files.image_size), dtype=np.uint8)
        reasons = [printable(str(error)) for error in decode_all(paths, files.image_size, files.channels, scratch)]
        with replacing(listed) as temporary:
            temporary.write_text("".join(f"{reason}\n" for reason in reasons))
        found = f"{len(paths):,} of {len(files.paths):,} images cannot be read"
        if self.on_unreadable == "error":
            few = "\n".join(reasons[:10]) + (f"\n... and {len(reasons) - 10:,} more" if len(reasons) > 10 else "")
            raise DataError(
                f"{found} (listed in {listed}):\n{few}\nReplace or remove them, or leave them out with "
                "--data.on_unreadable skip. Decoded images are kept."
            )
        self._remarks.append(f"Left out: {found} (listed in {listed}).")
        rank_zero_warn(f"{found}, and are left out: {listed} lists them.", category=UnreadableImagesWarning)


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


def _class_images(layout: FolderLayout, files: ImageFiles, decoded: DecodedFiles) -> ClassImages:
    """The readable images by class."""
    labels = np.repeat(np.arange(len(layout.classes)), [len(found.images) for found in layout.classes])
    return ClassImages(
        map_images(decoded.path),
        [found.name for found in layout.classes],
        labels,
        [printable(str(path.relative_to(files.root))) for path in files.paths],
        decoded.path,
        None if decoded.readable.all() else np.flatnonzero(decoded.readable),
    )


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
