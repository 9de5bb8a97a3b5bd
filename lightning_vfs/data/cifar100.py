"""CIFAR-100: small photographs of 100 kinds of things, 600 of each, in its few-shot splits."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any, Literal, get_args

import numpy as np

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.image_sets import FoundClass
from lightning_vfs.data.module import Split
from lightning_vfs.data.official import OfficialFile, OfficialSets, check_choice
from lightning_vfs.data.pickles import read_pickle
from lightning_vfs.data.sources import ImageArray

Partition = Literal["fsdm", "fc100", "cifar-fs"]

_FC100: dict[Split, str] = {
    "val": "large_carnivores large_omnivores_and_herbivores non-insect_invertebrates small_mammals",
    "test": "aquatic_mammals insects medium_mammals people",
}
"""Superclasses of five classes each; the other twelve are train (Oreshkin et al. 2018)."""

_CIFAR_FS: dict[Split, str] = {
    "val": "beaver otter flatfish shark lamp television beetle butterfly sea camel cattle crab crocodile maple_tree "
    "motorcycle tractor",
    "test": "whale poppy rose sweet_pepper telephone bed table wardrobe leopard plain chimpanzee fox snail worm baby "
    "man woman bicycle pickup_truck rocket",
}
"""Classes; the other 64 are train (Bertinetto et al. 2019)."""


class CIFAR100Sets(OfficialSets):
    """Sets of photographs of one class of CIFAR-100 (Krizhevsky 2009), 32 x 32.

    All 600 images of a class are used, those of the official train and test files. Partitions of the classes:

    - `fsdm`: 60 train, 20 val, 20 test, as few-shot diffusion models (Giannone et al. 2022). Their program reads the
      lists of FC100, so it is the same as
    - `fc100`: 12, 4 and 4 superclasses of five classes (Oreshkin et al. 2018).
    - `cifar-fs`: 64, 16 and 20 classes (Bertinetto et al. 2019).

    Args:
        root: folder of cifar-100-python.tar.gz, or of the folder cifar-100-python that it unpacks to.
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
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ),
    )

    def __init__(
        self,
        root: str,
        partition: Partition = "fsdm",
        set_size: int = 6,
        image_size: int = 32,
        channels: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, set_size=set_size, image_size=image_size, channels=channels, **kwargs)
        check_choice("partition", partition, get_args(Partition))
        self.partition = partition

    def classes(self) -> Iterable[FoundClass]:
        tree = self.tree("cifar-100-python.tar.gz", "cifar-100-python")
        files = {name.rsplit("/", 1)[-1]: name for name in tree.names}
        if missing := {"train", "test", "meta"} - set(files):
            raise DataError(f"{tree.path} holds no {', no '.join(sorted(missing))}: it is not CIFAR-100 for Python.")
        read = {
            name: read_pickle(BytesIO(tree.read(files[name])), f"{tree.path}: {name}")
            for name in ("train", "test", "meta")
        }
        try:
            parts = [read["train"], read["test"]]
            names, superclasses = read["meta"]["fine_label_names"], read["meta"]["coarse_label_names"]
            pixels = np.concatenate([np.asarray(part["data"], dtype=np.uint8) for part in parts])
            images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            fine = np.concatenate([np.asarray(part["fine_labels"], dtype=np.int64) for part in parts])
            coarse = np.concatenate([np.asarray(part["coarse_labels"], dtype=np.int64) for part in parts])
            array = ImageArray(tree.path, images, " ".join(tree.state(files[name]) for name in ("train", "test")))
            rows = {names[label]: np.flatnonzero(fine == label) for label in np.unique(fine)}
            above = {names[label]: superclasses[coarse[fine == label][0]] for label in np.unique(fine)}
            if not len(images) == len(fine) == len(coarse):
                raise ValueError(f"it has {len(images)} images, but {len(fine)} labels")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{tree.path} is not CIFAR-100 for Python ({error!r}). Use the published file.") from error
        return [
            FoundClass(name, self._split(name, above[name]), array, [str(row) for row in found])
            for name, found in rows.items()
        ]

    def _split(self, name: str, superclass: str) -> Split:
        lists, member = (_CIFAR_FS, name) if self.partition == "cifar-fs" else (_FC100, superclass)
        return next((split for split, members in lists.items() if member in members.split()), "train")
