"""CUB-200-2011: photographs of 200 species of birds."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.image_sets import FoundClass
from lightning_vfs.data.layout import printable
from lightning_vfs.data.module import Split
from lightning_vfs.data.official import OfficialFile, OfficialSets

IMAGES = 11_788
"""Images of all 200 species."""


class CUBSets(OfficialSets):
    """Sets of photographs of one species of birds (Wah et al. 2011).

    A class is a folder such as `001.Black_footed_Albatross`. Those with odd numbers are train (100), those that leave 2
    when divided by 4 are val (50), those divisible by 4 test (50), as Chen et al. 2019 ("A closer look at few-shot
    classification") split them, and few-shot diffusion models (Giannone et al. 2022) after them.

    Args:
        root: folder of CUB_200_2011.tgz, or of the folder CUB_200_2011 that it unpacks to.
        set_size: as for `SetDataModule`.
        image_size: likewise.
        channels: likewise.
        **kwargs: as for `OfficialSets`.

    Raises:
        ConfigError: a value is not allowed.
    """

    files = (
        OfficialFile(
            "CUB_200_2011.tgz",
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        ),
    )

    def __init__(self, root: str, set_size: int = 6, image_size: int = 64, channels: int = 3, **kwargs: Any) -> None:
        super().__init__(root, set_size=set_size, image_size=image_size, channels=channels, **kwargs)

    def classes(self) -> Iterable[FoundClass]:
        tree = self.tree("CUB_200_2011.tgz", "CUB_200_2011")
        images: dict[str, list[str]] = defaultdict(list)
        for name in tree.images:
            label = PurePosixPath(name).parent.name
            if re.match(r"\d{3}\.", label):
                images[printable(label)].append(name)
        if not images:
            raise DataError(
                f"There is no bird in {tree.path}: images are expected in folders such as "
                "images/001.Black_footed_Albatross."
            )
        if (count := sum(map(len, images.values()))) != IMAGES:
            self.remark(f"{tree.path} holds {len(images):,} species, {count:,} images; the official set {IMAGES:,}.")
        return [FoundClass(label, _split(int(label[:3])), tree, found) for label, found in images.items()]


def _split(number: int) -> Split:
    return "train" if number % 2 else "val" if number % 4 == 2 else "test"
