"""Your own images: one folder for each class."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.cache import cached_images, content_key
from lightning_vfs.data.decode import DECODING, decode_all, is_image
from lightning_vfs.data.images import ClassImages, to_float
from lightning_vfs.data.module import SPLITS, SetDataModule, Split


class FolderSets(SetDataModule):
    """Sets of the images in a folder: one subfolder for each class, which gives the class its name.

    Below a class's folder every image counts, in deeper folders too; other files and hidden ones do not. Formats are
    those that Pillow reads. Images are turned by their EXIF orientation, put on white where they are transparent, cut
    to the centre square and resized (antialiased).

    Classes are split by `split_seed`, unless the folder holds `train/`, with the classes in it, and perhaps `val/`
    and `test/`: then these are the splits. Of `val` and `test`, one that is missing is taken from the classes of
    `train`, by `split_seed` and its share in `split_fractions`.

    Args:
        root: the folder.
        **kwargs: as for `SetDataModule`.

    Raises:
        ConfigError: a value is not allowed.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()

    def load(self) -> ClassImages | Mapping[Split, ClassImages]:
        """All images; decoded at the first use, then from the cache.

        Raises:
            DataError: there is no such folder, it holds no classes, an image cannot be read, or the cache cannot be
                written.
        """
        classes = _find_classes(self.root)
        paths = [path for found in classes for path in found.images]
        # Reading all contents takes as long as decoding, at every start and on every rank. What the file system says
        # is nearly as good: a changed file may keep its size and set back its modification time, but not the time of
        # its last change, st_ctime. The price is that a copied data set is decoded again.
        files = [str(path.relative_to(self.root)) for path in paths]
        content = {
            "files": [[file, *_stamp(path)] for file, path in zip(files, paths, strict=True)],
            "classes": [found.name for found in classes],
            "image": [self.channels, self.image_size],
            "versions": [DECODING, PIL.__version__],
        }

        def build() -> ClassImages:
            rank_zero_info(f"Decoding {len(paths):,} images of {self.root} into the cache {self.cache_dir} ...")
            labels = np.repeat(np.arange(len(classes)), [len(found.images) for found in classes])
            pixels = torch.from_numpy(decode_all(paths, self.image_size, self.channels))
            return ClassImages(pixels, [found.name for found in classes], labels)

        cached = cached_images(self.cache_dir, "folders", content_key(content), build)
        everything = ClassImages(cached.images, cached.class_names, cached.labels, files, cached.mapped)
        splits = {split for found in classes if (split := found.split)}
        if not splits:
            return everything
        return {
            split: everything.select([i for i, found in enumerate(classes) if found.split == split])
            for split in SPLITS
            if split in splits
        }


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
    if isinstance(paths_or_folder, str | os.PathLike):
        folder = Path(paths_or_folder).expanduser()
        paths = [p for p in sorted(folder.iterdir()) if p.is_file() and is_image(p)] if folder.is_dir() else [folder]
        if not paths:
            raise DataError(
                f"There is no image in {folder}: it holds {_contents(folder)}. Give the folder of one class."
            )
    else:
        paths = [Path(path).expanduser() for path in paths_or_folder]
        if not paths:
            raise DataError("A support needs at least one image, and none was given.")
    for path in paths:
        if not path.exists():
            raise DataError(_no_such(path))
    return to_float(torch.from_numpy(decode_all(paths, image_size, channels)))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Replace or remove it.") from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Class(NamedTuple):
    name: str
    split: Split | None
    images: list[Path]


def _find_classes(root: Path) -> list[_Class]:
    """Classes in the order of their names; those of each split together, where folders say which they are in."""
    if not root.exists():
        raise DataError(_no_such(root))
    if not root.is_dir():
        raise DataError(f"{root} is a file. Give the folder that holds one folder for each class.")
    folders = _subfolders(root)
    if not folders:
        raise DataError(
            f"There are no class folders in {root}: it holds {_contents(root)}. Put the images of each class into a "
            f"folder of its own, such as {root / 'cat' / '1.png'}."
        )
    if folders.keys() <= set(SPLITS) or ("train" in folders and _subfolders(folders["train"])):
        classes = [found for split in SPLITS if split in folders for found in _classes_of_split(folders[split], split)]
        _refuse_other_folders(root, folders)
    else:
        classes = [_Class(name, None, list(_images_below(folder))) for name, folder in folders.items()]
    if not any(found.images for found in classes):
        raise DataError(
            f"There is no image in the {len(classes)} class folders of {root}: {classes[0].name} holds "
            f"{_contents(root / (classes[0].split or '') / classes[0].name)}. Images are files such as .png and .jpg."
        )
    return classes


def _classes_of_split(folder: Path, split: Split) -> list[_Class]:
    classes = [_Class(name, split, list(_images_below(path))) for name, path in _subfolders(folder).items()]
    if not classes:
        raise DataError(
            f"There are no class folders in {folder}: it holds {_contents(folder)}. Put the images of each class into "
            f"a folder of its own, such as {folder / 'cat' / '1.png'}."
        )
    return classes


def _refuse_other_folders(root: Path, folders: Mapping[str, Path]) -> None:
    """What stands beside train/ and holds images is more likely a misspelled split than meant to be ignored."""
    if "train" not in folders:
        raise DataError(f"{root} holds {', '.join(folders)}, but no train: add it, or give a folder of class folders.")
    others = [name for name, path in folders.items() if name not in SPLITS and any(_images_below(path))]
    if others:
        raise DataError(
            f"Beside train, {root} holds {', '.join(others[:10])} with images in them, but splits are called "
            f"{', '.join(SPLITS)}. Rename these folders, or move them elsewhere."
        )


def _subfolders(folder: Path) -> dict[str, Path]:
    """Folders in a folder that are not hidden, by name in its order."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}


def _images_below(folder: Path) -> Iterator[Path]:
    """Images in a folder and in those below it, in the order of their paths; nothing that is hidden."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}.") from error

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in sorted(files) if is_image(path := Path(parent, name)))


def _no_such(path: Path) -> str:
    """What a wrong path could have meant: names near it, in the nearest folder that exists."""
    near = next(parent for parent in path.absolute().parents if parent.is_dir())
    missing = path.absolute().relative_to(near).parts[0]
    names = sorted(entry.name for entry in near.iterdir() if not entry.name.startswith("."))
    alike = difflib.get_close_matches(missing, names)
    if alike:
        return f"There is no {path}. Did you mean {' or '.join(str(near / name) for name in alike)}?"
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"There is no {path}: {near} has no {missing}; it holds {listed or 'nothing'}."


def _contents(folder: Path) -> str:
    """What a folder holds, in a few words."""
    kinds = Counter(
        "folders" if path.is_dir() else "images" if is_image(path) else f"{path.suffix or 'other'} files"
        for path in folder.iterdir()
        if not path.name.startswith(".")
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
