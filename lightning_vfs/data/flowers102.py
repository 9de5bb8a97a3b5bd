"""Oxford 102 Flowers: photographs of 102 kinds of flowers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.image_sets import FoundClass
from lightning_vfs.data.module import Split
from lightning_vfs.data.official import OfficialFile, OfficialSets, check_choice

Partition = Literal["meta-dataset", "lofgan"]

_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_META_DATASET: dict[Split, frozenset[int]] = {
    "val": frozenset({10, 16, 17, 23, 26, 47, 53, 56, 57, 62, 82, 83, 86, 97, 102}),
    "test": frozenset({5, 9, 15, 19, 35, 40, 41, 42, 45, 46, 65, 85, 89, 94, 96, 98}),
}
"""Numbers of classes; the other 71 are train (Triantafillou et al. 2020)."""

CLASSES, _LOFGAN_TRAIN = 102, 85


class Flowers102Sets(OfficialSets):
    """Sets of photographs of one kind of flower (Nilsback and Zisserman 2008), 8,189 in all.

    A class is named by its number and name, `001 pink primrose`. The images of the official train, val and test files
    are used together, since here classes are split. Partitions of the classes:

    - `meta-dataset`: 71 train, 15 val, 16 test, by the list of Meta-Dataset (Triantafillou et al. 2020).
    - `lofgan`: 85 train and 17 test, the numbers of few-shot image generation since LoFGAN (Gu et al. 2021), whose list
      is not published: here the first 85 by number. Validation classes are taken from train by `split_fractions`.

    Args:
        root: folder of 102flowers.tgz (or of the folder jpg that it unpacks to) and of imagelabels.mat.
        partition: which classes are train, val and test.
        set_size: as for `SetDataModule`.
        image_size: likewise.
        channels: likewise.
        **kwargs: as for `OfficialSets`.

    Raises:
        ConfigError: a value is not allowed.
    """

    files = (
        OfficialFile(
            "102flowers.tgz",
            f"{_URL}102flowers.tgz",
            "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
        ),
        OfficialFile(
            "imagelabels.mat",
            f"{_URL}imagelabels.mat",
            "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
        ),
    )
    folders = ("flowers-102",)

    def __init__(
        self,
        root: str,
        partition: Partition = "meta-dataset",
        set_size: int = 6,
        image_size: int = 64,
        channels: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, set_size=set_size, image_size=image_size, channels=channels, **kwargs)
        check_choice("partition", partition, get_args(Partition))
        self.partition = partition

    def classes(self) -> Iterable[FoundClass]:
        tree = self.tree("102flowers.tgz", "jpg")
        places = {PurePosixPath(name).name: name for name in tree.images}
        images: dict[int, list[str]] = defaultdict(list)
        missing = 0
        for number, label in enumerate(_labels(self.file("imagelabels.mat")), start=1):
            if place := places.get(f"image_{number:05d}.jpg"):
                images[label].append(place)
            else:
                missing += 1
        if missing:
            self.remark(f"Left out: {missing:,} images of imagelabels.mat that are not in {tree.path}.")
        names = _names()
        return [
            FoundClass(f"{label:03d} {names[label - 1]}", self._split(label), tree, found)
            for label, found in images.items()
        ]

    def _split(self, label: int) -> Split:
        if self.partition == "lofgan":
            return "train" if label <= _LOFGAN_TRAIN else "test"
        return next((split for split, labels in _META_DATASET.items() if label in labels), "train")


def _names() -> list[str]:
    from torchvision.datasets import Flowers102  # which takes a while to import

    return list(Flowers102.classes)


def _labels(path: Path) -> list[int]:
    """Number of the class, from 1 to 102, of every image in the order of their numbers."""
    from scipy.io import loadmat

    try:
        labels = np.asarray(loadmat(path, squeeze_me=True)["labels"]).reshape(-1)
    except Exception as error:  # scipy's reader raises nearly anything on damaged files
        raise DataError(f"{path} cannot be read as a file of MATLAB ({error}): use the published one.") from error
    if labels.dtype.kind not in "uif" or not ((labels >= 1) & (labels <= CLASSES) & (labels % 1 == 0)).all():
        raise DataError(f"{path} must hold class numbers from 1 to {CLASSES}. Use the published file.")
    return [int(label) for label in labels]
