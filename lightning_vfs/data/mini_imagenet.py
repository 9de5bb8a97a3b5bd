"""miniImageNet: photographs of 100 kinds of things, 600 of each, in the split of Ravi and Larochelle."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.archives import Tree
from lightning_vfs.data.image_sets import FoundClass
from lightning_vfs.data.layout import contents, no_such
from lightning_vfs.data.module import SPLITS, Split
from lightning_vfs.data.official import OfficialSets
from lightning_vfs.data.pickles import read_pickle
from lightning_vfs.data.sources import ImageArray, file_state

PICKLES: Sequence[Mapping[Split, str]] = (
    {split: f"mini-imagenet-cache-{split}.pkl" for split in SPLITS},
    {
        "train": "miniImageNet_category_split_train_phase_train.pickle",
        "val": "miniImageNet_category_split_val.pickle",
        "test": "miniImageNet_category_split_test.pickle",
    },
)
"""Names of the two pickled forms in use: `image_data` with `class_dict`, and `data` with `labels`."""

WAYS = (
    "Expected are train.csv, val.csv and test.csv with a folder images (or images.zip, images.tar), or "
    f"{', '.join(PICKLES[0].values())}, or {', '.join(PICKLES[1].values())}."
)


class MiniImageNetSets(OfficialSets):
    """Sets of photographs of one class of miniImageNet (Vinyals et al. 2016), in the split of Ravi and Larochelle 2017.

    64, 16 and 20 classes of ImageNet, named by their numbers there (`n01532829`). `root` holds either

    - `train.csv`, `val.csv` and `test.csv` (columns `filename` and `label`), and the images that they name in `images/`
      or in an archive `images.zip`, `images.tar`, `images.tar.gz`; in folders of the classes or not; or
    - the pickled images of 84 x 84 in use, `mini-imagenet-cache-train.pkl` and so on, or
      `miniImageNet_category_split_train_phase_train.pickle` and so on. They are read without running the code that a
      pickle may hold.

    ImageNet's licence allows no download here.

    Args:
        root: folder of these files.
        set_size: as for `SetDataModule`.
        image_size: likewise.
        channels: likewise.
        **kwargs: as for `OfficialSets`.

    Raises:
        ConfigError: a value is not allowed.
    """

    files = ()
    folders = ("miniimagenet", "mini-imagenet", "miniImageNet")

    def __init__(self, root: str, set_size: int = 6, image_size: int = 32, channels: int = 3, **kwargs: Any) -> None:
        super().__init__(root, set_size=set_size, image_size=image_size, channels=channels, **kwargs)

    def classes(self) -> Iterable[FoundClass]:
        if not self.root.is_dir():
            raise DataError(no_such(self.root) if not self.root.exists() else f"{self.root} is a file. {WAYS}")
        for folder in (self.root, *(self.root / name for name in self.folders)):
            if (folder / "train.csv").is_file():
                return self._from_csv(folder)
            for names in PICKLES:
                if (folder / names["train"]).is_file():
                    return [each for split in SPLITS for each in _from_pickle(folder / names[split], split)]
        raise DataError(f"There is no miniImageNet in {self.root}, which holds {contents(self.root)}. {WAYS}")

    def _from_csv(self, folder: Path) -> list[FoundClass]:
        tree = self._images(folder)
        places = {PurePosixPath(name).name: name for name in tree.images}
        found, missing = [], []
        for split in SPLITS:
            path = folder / f"{split}.csv"
            images: dict[str, list[str]] = defaultdict(list)
            for row in _rows(path):
                if row["filename"] in places:
                    images[row["label"]].append(places[row["filename"]])
                else:
                    missing.append(row["filename"])
            if not images:
                raise DataError(f"{path} names no image that is in {tree.path}, such as {missing[:1]}.")
            found += [FoundClass(label, split, tree, names) for label, names in images.items()]
        if missing:
            self.remark(f"Left out: {len(missing):,} images of the lists that are not in {tree.path}.")
        return found

    def _images(self, folder: Path) -> Tree:
        for name in ("images.zip", "images.tar", "images.tar.gz", "images.tgz"):
            if (folder / name).is_file():
                return self.tree(str((folder / name).relative_to(self.root)))
        if (folder / "images").is_dir():
            return self.tree(str((folder / "images.zip").relative_to(self.root)))
        raise DataError(f"There is train.csv in {folder}, but no folder images with what it names. {WAYS}")


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a list of images ({error}).") from error
    if not rows or not {"filename", "label"} <= set(rows[0]):
        raise DataError(f"{path} must have the columns filename and label, and a row for each image.")
    return rows


def _from_pickle(path: Path, split: Split) -> list[FoundClass]:
    try:
        with path.open("rb") as file:
            values = read_pickle(file, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {WAYS}") from error
    try:
        if "image_data" in values:
            images, rows = values["image_data"], dict(values["class_dict"])
        else:
            images, labels = values["data"], np.asarray(values["labels"])
            names = {label: name for name, label in values.get("catname2label", {}).items()}
            rows = {names.get(label, f"class {label}"): np.flatnonzero(labels == label) for label in np.unique(labels)}
        array = ImageArray(path, np.asarray(images), file_state(path))
        numbers = {str(name): [int(row) for row in found] for name, found in rows.items()}
        if any(not 0 <= row < len(array.array) for found in numbers.values() for row in found):
            raise ValueError(f"it has {len(array.array)} images, and classes of others")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} does not hold miniImageNet's images and classes ({error!r}). {WAYS}") from error
    return [FoundClass(name, split, array, [str(row) for row in found]) for name, found in numbers.items()]
