"""Augmentation of training batches, and turned classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.data import ClassImages, SetDataModule
from lightning_vfs.data.sets import SetLoader

V2 = "torchvision.transforms.v2."
FLIP = {"class_path": V2 + "RandomHorizontalFlip", "init_args": {"p": 0.5}}
CROP = {
    "class_path": V2 + "RandomResizedCrop",
    "init_args": {"size": 8, "scale": [0.8, 1.0], "ratio": [1.0, 1.0]},
}
COLOUR = {"class_path": V2 + "ColorJitter", "init_args": {"brightness": 0.5}}


class RampSets(SetDataModule):
    """Ten classes of six images, each brighter to the right and downwards; pixels say which image it is."""

    def __init__(self, **options: Any) -> None:
        defaults: dict[str, Any] = {"set_size": 3, "image_size": 8, "channels": 3, "batch_size": 4}
        super().__init__(**(defaults | {"sets_per_epoch": 16, "eval_sets": 4, "seed": 3} | options))

    def load(self) -> ClassImages:
        ramp = 10 * torch.arange(8)[None, :] + torch.arange(8)[:, None]
        number = torch.arange(60)
        images = (ramp[None, None] + number[:, None, None, None]).expand(-1, self.channels, -1, -1).to(torch.uint8)
        return ClassImages(images, [f"class {i}" for i in range(10)], np.repeat(np.arange(10), 6))


def epoch(loader: SetLoader, number: int = 0) -> torch.Tensor:
    """Images of an epoch's sets, in the order of their indices."""
    loader.batch_sampler.set_epoch(number)
    return torch.cat([batch["images"] for batch in loader])


def test_each_image_is_flipped_by_itself_or_not_at_all() -> None:
    plain, flipped = RampSets().train_dataloader(), RampSets(augmentation=[FLIP]).train_dataloader()
    images, changed = epoch(plain), epoch(flipped)
    is_flipped = (changed == images.flip(-1)).flatten(2).all(2)
    assert (is_flipped | (changed == images).flatten(2).all(2)).all()
    assert 0.25 < is_flipped.float().mean() < 0.75
    assert is_flipped.float().mean(1).unique().numel() > 2, "images of a set are not flipped together"


def test_what_is_drawn_depends_on_the_index_of_the_set_alone() -> None:
    options: dict[str, Any] = {"augmentation": [FLIP, CROP, COLOUR]}
    expected = [epoch(RampSets(**options).train_dataloader(), number) for number in (0, 1)]
    torch.manual_seed(5)
    assert not torch.equal(*expected)
    for other in ({"batch_size": 2}, {"num_workers": 2}):
        loader = RampSets(**options | other).train_dataloader()
        assert all(torch.equal(epoch(loader, number), expected[number]) for number in (0, 1))
    loaders = []
    for rank in range(2):
        data = RampSets(**options)
        sampler = data._sampler("train")
        sampler.rank, sampler.world_size = rank, 2
        loaders.append(SetLoader(sampler, augment=data._augment))
    ranks = [torch.cat([one["images"], two["images"]]) for one, two in zip(*loaders, strict=True)]
    assert torch.equal(torch.cat(ranks), expected[0])
    other_seed = RampSets(**options, split_seed=0)
    other_seed.seed = 4
    assert not torch.equal(epoch(other_seed.train_dataloader()), expected[0])


def test_random_numbers_of_the_process_are_left_as_they_were() -> None:
    augment, images = RampSets(augmentation=[FLIP])._augment, torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augment(images, np.arange(2), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_uses_the_images_as_they_are() -> None:
    plain, augmented = RampSets(), RampSets(augmentation=[COLOUR])
    for name in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        for one, two in zip(getattr(plain, name)(), getattr(augmented, name)(), strict=True):
            assert torch.equal(one["images"], two["images"])
    assert torch.equal(plain.split("train").images, augmented.split("train").images)


def test_sets_overfitted_to_are_augmented_anew_in_every_epoch() -> None:
    data = RampSets(augmentation=[COLOUR])
    sampler = data._sampler("train")
    sampler.same_sets = True
    loader = SetLoader(sampler, augment=data._augment)
    assert not torch.equal(epoch(loader, 0), epoch(loader, 1))


def test_a_resumed_run_is_told_apart_by_its_augmentation() -> None:
    assert RampSets(augmentation=[FLIP]).identity()["augmentation"] == [FLIP]
    assert RampSets(turned_classes="all").identity()["turned_classes"] == "all"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"class_path": "RandomHorizontalFlip"}, "each transform must be given as {class_path: torchvision"),
        (f"{V2}RandomHorizontalFlip", "each transform must be given as {class_path: torchvision"),
        (FLIP | {"p": 1}, "each transform must be given as"),
        ({"class_path": V2 + "RandomFlop"}, "cannot be imported"),
        (
            {"class_path": V2 + "RandomCrop", "init_args": {"size": 4}},
            r"makes torch.uint8 \(3, 4, 4\)",
        ),
        ({"class_path": V2 + "ToDtype", "init_args": {"dtype": torch.float}}, "it must keep both"),
        (
            {"class_path": V2 + "ColorJitter", "init_args": {"brightness": -1}},
            "cannot be made with",
        ),
        ({"class_path": V2 + "ColorJitter", "init_args": {"light": 1}}, "cannot be made with"),
        (
            {"class_path": V2 + "Normalize", "init_args": {"mean": [0], "std": [1]}},
            "fails on an image",
        ),
    ],
)
def test_a_transform_that_cannot_work_is_refused_at_once(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RampSets(augmentation=[spec])


def test_own_transforms_go_by_their_path() -> None:
    data = RampSets(augmentation=[{"class_path": f"{__name__}.Invert"}])
    assert torch.equal(epoch(data.train_dataloader()), 255 - epoch(RampSets().train_dataloader()))


class Invert(v2.Transform):
    """Black becomes white."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 255 - image


# -- turned classes ---------------------------------------------------------------------------------------------------


def test_turned_classes_hold_the_images_turned(numbered: Any) -> None:
    corner = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    corner[:, :, 0, 2] = torch.arange(1, 5, dtype=torch.uint8)[:, None]  # upper right
    images = ClassImages(corner, ["a", "b"], [0, 0, 1, 1], files=[f"{i}.png" for i in range(4)])
    turned = images.with_turned()
    assert turned.class_names == tuple(name + turn for turn in ("", "/rot090", "/rot180", "/rot270") for name in "ab")
    assert turned.counts.tolist() == [2] * 8 and len(turned) == 16
    places = [(0, 2), (0, 0), (2, 0), (2, 2)]  # anticlockwise
    for label in range(8):
        first = turned.offsets[label]
        row, column = places[label // 2]
        pixels = turned.uint8([first, first + 1])
        assert pixels[:, 0, row, column].tolist() == [2 * (label % 2) + 1, 2 * (label % 2) + 2]
        assert (pixels != 0).sum() == 2
    assert torch.equal(turned.images, turned.uint8(range(16)))
    chosen = turned.select([7, 0])
    assert torch.equal(chosen.uint8(range(4)), turned.uint8([14, 15, 0, 1]))
    assert [turned.name_of(i) for i in (0, 5)] == ["0.png", "1.png, turned by 90 degrees"]
    assert chosen.name_of(0) == "2.png, turned by 270 degrees"


@pytest.mark.parametrize(("option", "factors"), [("none", (1, 1, 1)), ("train", (4, 1, 1)), ("all", (4, 4, 4))])
def test_a_turned_class_is_in_the_split_of_its_original(option: Any, factors: tuple[int, ...]) -> None:
    plain, data = RampSets(), RampSets(turned_classes=option)
    for split, factor in zip(("train", "val", "test"), factors, strict=True):
        names = data.split(split).class_names  # type: ignore[arg-type]
        assert {name.split("/")[0] for name in names} == set(plain.split(split).class_names)  # type: ignore[arg-type]
        assert len(names) == factor * plain.split(split).num_classes  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="turned_classes is 'test'; allowed: 'none', 'train', 'all'"):
        RampSets(turned_classes="test")
