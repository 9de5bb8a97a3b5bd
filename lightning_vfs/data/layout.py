"""The layout of a data folder: classes by its subfolders, splits by their names, and what is passed over."""

from __future__ import annotations

import difflib
import os
import stat
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.data.decode import HEIC, extensions, is_image
from lightning_vfs.data.module import Split

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of folders, in any case, that say which split the classes in them are of."""


class ClassFolder(NamedTuple):
    """A class: its name, its folder, the split that this is in, if any, and its images.

    Attributes:
        images: paths below the folder (m), as text: there may be a million.
        states: int64 (m, 3), what the file system says of every image: bytes (the negative number of the error, if it
            cannot be found), time of the last modification and of the last change of status, in nanoseconds.
    """

    name: str
    folder: Path
    split: Split | None
    images: list[str]
    states: np.ndarray

    def subfolders(self) -> set[str]:
        """Names of the folders in it that hold its images; none if images lie directly in it."""
        first = {folder for folder, slash, _ in (image.partition("/") for image in self.images) if slash}
        return first if all("/" in image for image in self.images) else set()


@dataclass
class FolderLayout:
    """The classes of a folder, and what in it is not an image of a class.

    Attributes:
        classes: in the order of their names; those of each split together.
        passed_over: files in the folders of classes that are not images, by suffix.
        stray: images that are in no folder of a class.
        repeated: links to images, or to folders, that count already.
        asks_for_level: nobody said at which level the folders of classes are.
    """

    classes: list[ClassFolder] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    stray: int = 0
    repeated: int = 0
    asks_for_level: bool = False

    def remarks(self) -> list[str]:
        """A line for everything that was passed over."""
        remarks = []
        if self.passed_over:
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in self.passed_over.most_common(8))
            remarks.append(f"Passed over as not images: {kinds}.")
        if any(suffix in HEIC for suffix in self.passed_over):
            remarks.append("Pillow reads HEIC with a plugin: pip install pillow-heif.")
        if self.stray:
            remarks.append(f"Passed over as images outside of the folders of classes: {self.stray:,}.")
        nested = [found.name for found in self.classes if len(found.subfolders()) > 1]
        if self.asks_for_level and nested:
            names = ", ".join(nested[:5]) + (", ..." if len(nested) > 5 else "")
            remarks.append(
                f"Folders of several folders of images, each taken for one class: {len(nested):,} of "
                f"{len(self.classes):,} ({names}). If they are classes themselves, put them beside the others."
            )
        if self.repeated:
            remarks.append(f"Passed over as links to files or folders that count already: {self.repeated:,}.")
        return remarks


def find_classes(root: Path, class_level: int | None = None) -> FolderLayout:
    """Find the classes of a folder, and the splits if its subfolders are named after them.

    Args:
        root: the folder.
        class_level: how deep below the root (or below the folder of a split) the folders of classes are: 1 for
            `cat/1.png`, 2 for `Greek/alpha/1.png`. None is 1, unless every folder of that level holds its images in
            subfolders: then it must be given.

    Raises:
        ConfigError: `class_level` is below 1.
        DataError: there is no such folder, it holds no classes, the level of classes is not clear, or names of folders
            contradict each other.
    """
    if class_level is not None and class_level < 1:
        raise ConfigError(f"class_level is {class_level}; it must be a whole number of at least 1, or null.")
    if not root.exists():
        raise DataError(no_such(root))
    if not root.is_dir():
        raise DataError(f"{root} is a file. Give the folder that holds one folder for each class.")
    layout, level = FolderLayout(asks_for_level=class_level is None), class_level or 1
    for split, folder in _splits(root).items():
        found = list(_folders_at(folder, level, layout))
        if not found:
            deeper = "" if level == 1 else f" {level} levels"
            raise DataError(
                f"There are no class folders{deeper and deeper + ' below'} in {folder}: it holds {contents(folder)}. "
                f"Put the images of each class into a folder of its own, such as {folder / 'cat' / '1.png'}."
            )
        layout.classes += [ClassFolder(name, path, split, *_collected(path, layout)) for name, path in found]
    with_images = [found for found in layout.classes if found.images]
    if not with_images:
        first = layout.classes[0]
        raise DataError(
            f"There is no image in the {len(layout.classes)} class folders of {root}: {first.name} holds "
            f"{contents(first.folder)}. Images are files such as .png and .jpg."
        )
    if class_level is None:
        _ask_for_level(root, with_images)
    _refuse_equal_names(root, layout.classes)
    return layout


def _splits(root: Path) -> dict[Split | None, Path]:
    """Folder of each split, if the names of all folders, or `train` among others, say that they are splits.

    Otherwise the root itself.
    """
    folders = _subfolders(root)
    named: dict[Split, list[tuple[str, Path]]] = {
        split: [(name, path) for name, path in folders if name.lower() in names] for split, names in SPLIT_NAMES.items()
    }
    splits = {split: found for split, found in named.items() if found}
    others = [(name, path) for name, path in folders if name.lower() not in set().union(*SPLIT_NAMES.values())]
    if not splits or (others and not any(_subfolders(path) for _, path in named["train"])):
        return {None: root}
    if "train" not in splits:
        names = ", ".join(name for name, _ in folders)
        raise DataError(f"{root} holds {names}, but no train: add it, or give a folder of class folders.")
    for split, found in splits.items():
        if len(found) > 1:
            raise DataError(
                f"{root} holds {' and '.join(name for name, _ in found)}, which both name the split {split}: keep one."
            )
    misspelled = [name for name, path in others if any(_images_below(path, FolderLayout()))]
    if misspelled:
        known = "; ".join(f"{split} by {', '.join(names)}" for split, names in SPLIT_NAMES.items())
        raise DataError(
            f"{root} holds {splits['train'][0][0]} and, with images in them, {', '.join(misspelled[:10])}, which name "
            f"no split (splits are named {known}). Rename these folders, or move them elsewhere."
        )
    return {split: found[0][1] for split, found in splits.items()}


def _folders_at(folder: Path, level: int, layout: FolderLayout, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Names and paths of the folders `level` levels below a folder; a name includes those of the folders above."""
    layout.stray += sum(is_image(path) for path in folder.iterdir() if path.is_file())
    for name, path in _subfolders(folder):
        if level == 1:
            yield prefix + name, path
        else:
            yield from _folders_at(path, level - 1, layout, f"{prefix}{name}/")


def _ask_for_level(root: Path, classes: Sequence[ClassFolder]) -> None:
    """Ask which folders are classes, where those of the first level hold several folders of images and no image.

    Raises:
        DataError: it is not clear.
    """
    below = [{tuple(image.split("/")[:-1]) for image in found.images} for found in classes]
    if not all(all(parts) for parts in below) or not any(len({first for first, *_ in parts}) > 1 for parts in below):
        return
    choices = [f"1 for {len(classes):,} classes such as {classes[0].name}"]
    for level in range(1, max(len(parts) for of_class in below for parts in of_class) + 1):
        deeper = [{parts[:level] for parts in of_class if len(parts) >= level} for of_class in below]
        example = "/".join([classes[0].name, *map(printable, min(deeper[0], default=()))])
        choices.append(f"{level + 1} for {sum(map(len, deeper)):,} classes such as {example}")
    raise DataError(
        f"The folders in {root} hold their images in folders of their own: which of them are the classes? Set "
        f"--data.class_level to {', or '.join(choices)}."
    )


def _refuse_equal_names(root: Path, classes: Sequence[ClassFolder]) -> None:
    counts = Counter((found.split, found.name) for found in classes)
    same = [name for (_, name), count in counts.items() if count > 1]
    if same:
        raise DataError(
            f"{root} holds two folders each named {', '.join(same[:10])}, which differ only in how letters are stored "
            "(composed or decomposed): put their images into one."
        )


def printable(name: str) -> str:
    r"""The name of a file or folder as text that can be printed, and that is the same on every system.

    Letters are composed (NFC), since systems store accents differently; a byte that is no UTF-8 becomes `\xe9`.
    """
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", os.fsencode(name).decode(errors="backslashreplace"))


def _subfolders(folder: Path) -> list[tuple[str, Path]]:
    """Printable names and paths of the folders in a folder that are not hidden, in the order of their names."""
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from error
    return sorted((printable(path.name), path) for path in found)


def _collected(folder: Path, layout: FolderLayout) -> tuple[list[str], np.ndarray]:
    """The images below a folder, and their states."""
    names, states = [], array("q")
    for name, state in _images_below(folder, layout):
        names.append(name)
        states.extend(state)
    return names, np.frombuffer(states, dtype=np.int64).reshape(-1, 3)


def _images_below(folder: Path, layout: FolderLayout) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Images in a folder and in those below it, in the order of their paths, each real file once; nothing hidden.

    The file system is asked for every file once. Other files, and links to what has been met, are counted in `layout`.

    Yields:
        Path below the folder, and state as in `ClassFolder`.
    """
    known, met = extensions(), set[tuple[int, int]]()

    def state_of(entry: os.DirEntry[str] | Path) -> tuple[int, int, int] | None:
        """None for what is not new."""
        try:
            status = entry.stat()
        except OSError as error:  # a link to nowhere is an image that cannot be read
            return -(error.errno or 1), 0, 0
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            layout.passed_over["pipe or device"] += 1  # reading one may never end
            return None
        identity = (status.st_dev, status.st_ino)
        if identity in met:
            layout.repeated += 1
            return None
        met.add(identity)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    state_of(folder)
    waiting = [(os.fspath(folder), "")]
    while waiting:
        path, prefix = waiting.pop()
        try:
            with os.scandir(path) as found:
                entries = [(printable(entry.name), entry) for entry in found if not entry.name.startswith(".")]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be listed: {error.strerror}.") from error
        entries.sort(key=itemgetter(0))
        files: list[os.DirEntry[str]] = []
        folders: list[os.DirEntry[str]] = []
        for _, entry in entries:
            (folders if _is_folder(entry) else files).append(entry)
        inside = [entry.name for entry in folders if state_of(entry)]
        for entry in files:
            if os.path.splitext(entry.name)[1].lower() not in known:
                layout.passed_over[printable(PurePath(entry.name).suffix.lower()) or "without suffix"] += 1
            elif state := state_of(entry):
                yield prefix + entry.name, state
        waiting += [(os.path.join(path, name), f"{prefix}{name}/") for name in reversed(inside)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads where nobody may look
        return False


def no_such(path: Path) -> str:
    """What a wrong path could have meant: names near it, in the nearest folder that exists."""
    near = next(parent for parent in path.absolute().parents if parent.is_dir())
    missing = path.absolute().relative_to(near).parts[0]
    names = sorted(printable(entry.name) for entry in near.iterdir() if not entry.name.startswith("."))
    alike = difflib.get_close_matches(missing, names)
    if alike:
        return f"There is no {path}. Did you mean {' or '.join(str(near / name) for name in alike)}?"
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"There is no {path}: {near} has no {missing}; it holds {listed or 'nothing'}."


def contents(folder: Path) -> str:
    """What a folder holds, in a few words."""
    kinds = Counter(
        "folders" if path.is_dir() else "images" if is_image(path) else f"{path.suffix or 'other'} files"
        for path in folder.iterdir()
        if not path.name.startswith(".")
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
