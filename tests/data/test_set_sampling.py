"""Sets are drawn again every epoch, the same for any number of workers or ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.data import ClassImages
from lightning_vfs.data.sets import SetLoader, SetSampler

Numbered = Callable[..., ClassImages]


def sampler(images: ClassImages, rank: int = 0, world_size: int = 1, **changes: int | bool) -> SetSampler:
    arguments = {"set_size": 3, "num_sets": 50, "batch_size": 12, "seed": 5} | changes
    return SetSampler(images, rank=rank, world_size=world_size, **arguments)  # type: ignore[arg-type]


def epoch_of(sampler: SetSampler) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    plans = list(sampler)
    return tuple(np.concatenate([p[key] for p in plans]) for key in ("members", "label", "index"))  # type: ignore[return-value, literal-required]


def test_a_set_holds_distinct_images_of_its_class(numbered: Numbered) -> None:
    images = numbered([3, 4, 50])
    members, label, _ = epoch_of(sampler(images))
    assert (images.labels[members] == label[:, None]).all()
    assert all(len(set(row)) == 3 for row in members)


def test_classes_come_equally_often_up_to_one_in_random_order(numbered: Numbered) -> None:
    images = numbered([5] * 7)
    _, label, _ = epoch_of(sampler(images, num_sets=48))
    counts = np.bincount(label, minlength=7)
    assert counts.max() - counts.min() == 1
    assert label[:7].tolist() != label[7:14].tolist()
    assert len({*label[:7]}) < 7 or len({*label[7:14]}) < 7


def test_every_image_of_a_class_is_equally_likely_in_every_slot(numbered: Numbered) -> None:
    members, _, _ = epoch_of(sampler(numbered([5]), num_sets=12_000))
    shares = np.stack([(members == i).mean(0) for i in range(5)])
    assert np.abs(shares - 0.2).max() < 0.02


def test_epochs_differ_and_depend_on_the_seed_alone(numbered: Numbered) -> None:
    images = numbered([5] * 7)

    def members(epoch: int, seed: int = 5) -> list[list[int]]:
        one = sampler(images, seed=seed)
        one.set_epoch(epoch)
        return epoch_of(one)[0].tolist()

    assert members(0) == members(0)
    assert members(0) != members(1) != members(2)
    assert members(1) != members(1, seed=6)


def test_the_index_of_a_set_counts_over_epochs(numbered: Numbered) -> None:
    one = sampler(numbered([5] * 7), num_sets=48)
    one.set_epoch(2)
    assert epoch_of(one)[2].tolist() == list(range(96, 144))


def test_sets_that_are_not_drawn_anew_are_those_of_epoch_0(numbered: Numbered) -> None:
    fixed = sampler(numbered([5] * 7), resample=False)
    first = epoch_of(fixed)
    fixed.set_epoch(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, epoch_of(fixed), strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_batches_of_one_process(numbered: Numbered, world_size: int) -> None:
    images = numbered([5] * 7)
    alone = list(sampler(images))
    ranks = [list(sampler(images, rank, world_size, batch_size=12 // world_size)) for rank in range(world_size)]
    assert [len(batches) for batches in ranks] == [4] * world_size
    for whole, *parts in zip(alone, *ranks, strict=True):
        for key in ("members", "label", "index"):
            assert np.array_equal(whole[key], np.concatenate([part[key] for part in parts]))  # type: ignore[literal-required]


def test_training_drops_the_last_sets_that_fill_no_batch(numbered: Numbered) -> None:
    one = sampler(numbered([5] * 7), num_sets=50, batch_size=12)
    assert len(one) == 4
    assert epoch_of(one)[2].tolist() == list(range(48))


@pytest.mark.parametrize("num_sets", [3, 4, 7, 12, 13, 25, 50])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_evaluation_delivers_every_set_once_in_as_many_batches_on_every_rank(
    numbered: Numbered, num_sets: int, world_size: int, batch_size: int
) -> None:
    images = numbered([5] * 7)
    ranks = [
        list(sampler(images, rank, world_size, num_sets=num_sets, batch_size=batch_size, drop_last=False))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    sizes = [len(plan["index"]) for batches in ranks for plan in batches]
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch_size, 2)
    delivered = np.concatenate([plan["index"] for step in zip(*ranks, strict=True) for plan in step])
    assert delivered.tolist() == list(range(num_sets))


def test_too_few_sets_for_the_ranks_are_refused_with_the_number_needed(numbered: Numbered) -> None:
    with pytest.raises(
        ConfigError, match=r"sets_per_epoch is 50, less than the 60 that 5 rank\(s\) with batch_size 12 need"
    ):
        sampler(numbered([5]), 0, 5)
    with pytest.raises(ConfigError, match="eval_sets is 2, less than the 3 that 3 rank"):
        sampler(numbered([5]), 0, 3, num_sets=2, drop_last=False)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_planned_images_for_any_number_of_workers(numbered: Numbered, num_workers: int) -> None:
    images = numbered([5] * 7)
    loader = SetLoader(sampler(images), num_workers)
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        members, label, index = epoch_of(loader.batch_sampler)
        batches = list(loader)
        assert len(batches) == len(loader) == 4
        assert batches[0]["images"].shape == (12, 3, 1, 2, 2)
        delivered = torch.cat([batch["images"] for batch in batches])[:, :, 0, 0, 0]
        assert delivered.dtype == torch.uint8 and delivered.tolist() == members.tolist()
        assert torch.cat([batch["label"] for batch in batches]).tolist() == label.tolist()
        assert torch.cat([batch["index"] for batch in batches]).tolist() == index.tolist()


def test_a_loader_goes_on_from_a_stored_position_once(numbered: Numbered) -> None:
    images = numbered([5] * 7)
    stopped = SetLoader(sampler(images))
    stopped.batch_sampler.set_epoch(1)
    whole = [batch["index"].tolist() for batch in stopped]
    batches = iter(stopped)
    next(batches)
    resumed = SetLoader(sampler(images))
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.state_dict() == stopped.state_dict()
    resumed.batch_sampler.set_epoch(1)
    assert [batch["index"].tolist() for batch in resumed] == whole[1:]
    assert [batch["index"].tolist() for batch in resumed] == whole
    resumed.load_state_dict(stopped.state_dict())
    resumed.batch_sampler.set_epoch(2)
    assert len(list(resumed)) == 4


def test_the_state_of_a_loader_is_plain_numbers(numbered: Numbered) -> None:
    assert all(type(value) is int for value in SetLoader(sampler(numbered([5]))).state_dict().values())
