"""Omniglot: handwritten characters of 50 alphabets, 20 drawings of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.image_sets import FoundClass
from lightning_vfs.data.layout import printable
from lightning_vfs.data.module import Split
from lightning_vfs.data.official import OfficialFile, OfficialSets, check_choice

Protocol = Literal["background/evaluation", "small1/small2", "vinyals"]

_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_SHA256 = {
    "images_background": "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    "images_evaluation": "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
    "images_background_small1": "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    "images_background_small2": "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
}
_CHARACTERS = {
    "images_background": 964,
    "images_evaluation": 659,
    "images_background_small1": 136,
    "images_background_small2": 156,
}
_DRAWINGS = 20

VINYALS_VAL = frozenset({"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"})
"""Alphabets of the validation classes, of the background set (Snell et al. 2017)."""

VINYALS_TEST = ("Gurmukhi", "character42")
"""First test class in the order of names within the evaluation set: 1,200 characters come before it, 423 from it on."""


class OmniglotSets(OfficialSets):
    """Sets of drawings of one character, by 20 people, dark ink on white paper (Lake et al. 2015).

    A class is `Alphabet/character01`. Protocols:

    - `background/evaluation`: train on the 964 characters of images_background, test on the 659 of images_evaluation,
      whose alphabets are others; validation classes are taken from train by `split_fractions` and `split_seed`.
    - `small1/small2`: train on the 136 characters of images_background_small1, test on images_background_small2. Its
      alphabets Greek and Latin are in small1 too, with the same drawings: these 50 of its 156 characters are left out
      of test, which has 106. Validation as above; none with `split_fractions` (1, 0, 0).
    - `vinyals`: 1,200 characters for training and 423 for test (Vinyals et al. 2016), by the lists of Snell et al.
      2017, with 172 of the 1,200 for validation, unless the share of val in `split_fractions` is 0.

    Add classes turned by 90 degrees, as is the custom, by `turned_classes: all`.

    Args:
        root: folder of the zips, or of what they unpack to.
        protocol: which characters are train and test.
        set_size: as for `SetDataModule`.
        image_size: likewise.
        channels: likewise.
        **kwargs: as for `OfficialSets`.

    Raises:
        ConfigError: a value is not allowed.
    """

    files = tuple(OfficialFile(f"{name}.zip", f"{_URL}{name}.zip", sha) for name, sha in _SHA256.items())
    folders = ("omniglot-py",)

    def __init__(
        self,
        root: str,
        protocol: Protocol = "background/evaluation",
        set_size: int = 6,
        image_size: int = 28,
        channels: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, set_size=set_size, image_size=image_size, channels=channels, **kwargs)
        check_choice("protocol", protocol, get_args(Protocol))
        self.protocol = protocol

    def classes(self) -> Iterable[FoundClass]:
        if self.protocol == "small1/small2":
            return self._without_shared("images_background_small1", "images_background_small2")
        background = self._characters("images_background", "train")
        evaluation = self._characters("images_evaluation", "test")
        if self.protocol == "vinyals":
            return [found._replace(split=self._vinyals(found)) for found in [*background, *evaluation]]
        return [*background, *evaluation]

    def _without_shared(self, train: str, test: str) -> list[FoundClass]:
        """Classes of two sets; those of test that are in train too are left out."""
        trained = self._characters(train, "train")
        known = {found.name for found in trained}
        tested = self._characters(test, "test")
        unseen = [found for found in tested if found.name not in known]
        if len(unseen) < len(tested):
            shared = sorted({found.name.split("/")[0] for found in tested if found.name in known})
            self.remark(
                f"Left out of test: {len(tested) - len(unseen)} of the {len(tested)} characters of {test}, which are "
                f"in {train} too, with the same drawings ({', '.join(shared)})."
            )
        return [*trained, *unseen]

    def _vinyals(self, found: FoundClass) -> Split:
        alphabet, character = found.name.split("/")
        if found.split == "test":
            return "test" if (alphabet, character) >= VINYALS_TEST else "train"
        return "val" if alphabet in VINYALS_VAL and self.split_fractions[1] > 0 else "train"

    def _characters(self, name: str, split: Split) -> list[FoundClass]:
        """Classes of one of the official sets."""
        tree = self.tree(f"{name}.zip")
        images: dict[str, list[str]] = defaultdict(list)
        stray = 0
        for image in tree.images:
            folders = PurePosixPath(image).parts[:-1]
            if len(folders) < 2:
                stray += 1
            else:
                images[printable("/".join(folders[-2:]))].append(image)
        if not images:
            raise DataError(
                f"There is no character in {tree.path}: drawings are expected in folders such as Greek/character01."
            )
        if stray:
            self.remark(f"Passed over in {tree.path} as images outside of the folders of characters: {stray:,}.")
        characters, drawings = len(images), sum(map(len, images.values()))
        if (characters, drawings) != (_CHARACTERS[name], _CHARACTERS[name] * _DRAWINGS):
            self.remark(
                f"{tree.path} holds {characters:,} characters, {drawings:,} drawings; the official set has "
                f"{_CHARACTERS[name]:,} characters, {_CHARACTERS[name] * _DRAWINGS:,} drawings."
            )
        return [FoundClass(label, split, tree, found) for label, found in images.items()]
