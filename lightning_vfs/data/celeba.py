"""CelebA: photographs of 10,177 people's faces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.errors import DataError
from lightning_vfs.data.image_sets import FoundClass
from lightning_vfs.data.official import OfficialFile, OfficialSets

_DRIVE = "https://drive.google.com/file/d/"


class CelebASets(OfficialSets):
    """Sets of photographs of one person (Liu et al. 2015), aligned and cropped.

    A class is a person, by the number in identity_CelebA.txt. Those with fewer than `min_images` photographs are left
    out; of the others, in the order of their numbers, the first 70% are train, the next 10% val, the rest test. These
    are the shares of few-shot diffusion models (Giannone et al. 2022: 4,444, 635 and 1,270 people). Their list of
    people is not published, so that membership may differ.

    Args:
        root: folder of img_align_celeba.zip (or of the folder img_align_celeba that it unpacks to) and of
            identity_CelebA.txt.
        min_images: least photographs of a person.
        set_size: as for `SetDataModule`.
        image_size: likewise.
        channels: likewise.
        **kwargs: as for `OfficialSets`.

    Raises:
        ConfigError: a value is not allowed.
    """

    files = (
        OfficialFile(
            "img_align_celeba.zip",
            f"{_DRIVE}0B7EVK8r0v71pZjFTYXZWM3FlRnM/view",
            "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
        ),
        OfficialFile("identity_CelebA.txt", f"{_DRIVE}1_ee_0u7vcNLOfNLegJRHmolfH5ICW-XS/view"),
    )
    folders = ("celeba",)

    def __init__(
        self,
        root: str,
        min_images: int = 20,
        set_size: int = 6,
        image_size: int = 64,
        channels: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, set_size=set_size, image_size=image_size, channels=channels, **kwargs)
        check_whole_number("min_images", min_images, 1)
        self.min_images = min_images

    def classes(self) -> Iterable[FoundClass]:
        tree = self.tree("img_align_celeba.zip", "img_align_celeba")
        places = {PurePosixPath(name).name: name for name in tree.images}
        of_person: dict[int, list[str]] = defaultdict(list)
        missing = 0
        for image, person in self._identities():
            if image in places:
                of_person[person].append(places[image])
            else:
                missing += 1
        if missing:
            self.remark(f"Left out: {missing:,} images of identity_CelebA.txt that are not in {tree.path}.")
        people = sorted(person for person, images in of_person.items() if len(images) >= self.min_images)
        if few := len(of_person) - len(people):
            self.remark(f"Left out: {few:,} of {len(of_person):,} people, with fewer than {self.min_images} images.")
        if not people:
            raise DataError(
                f"None of the {len(of_person):,} people in {tree.path} has {self.min_images} images: choose a smaller "
                "--data.min_images."
            )
        # as int(0.7 * people) and int(0.8 * people) there, in whole numbers
        val, test = 7 * len(people) // 10, 8 * len(people) // 10
        return [
            FoundClass(
                f"{person:05d}", "train" if i < val else "val" if i < test else "test", tree, sorted(of_person[person])
            )
            for i, person in enumerate(people)
        ]

    def _identities(self) -> list[tuple[str, int]]:
        path = self.file("identity_CelebA.txt")
        try:
            rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
            return [(image, int(person)) for image, person in rows]
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read ({error}): each line must have an image and a person's number, such as "
                "`000001.jpg 2880`."
            ) from error
