"""Images grouped by class, and the episodes drawn from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.data import ClassImages

Numbered = Callable[..., ClassImages]


def test_pixels_have_the_shape_of_the_indices_and_lie_between_minus_one_and_one(numbered: Numbered) -> None:
    images = numbered([100, 156], channels=3)
    pixels = images.float([[0, 255, 128], [1, 2, 3]])
    assert pixels.shape == (2, 3, 3, 2, 2)
    assert pixels.dtype == torch.float32
    assert pixels[0, :, 0, 0, 0].tolist() == [-1.0, 1.0, np.float32(128) / np.float32(127.5) - 1]
    assert torch.equal(images.uint8(7), torch.full((3, 2, 2), 7, dtype=torch.uint8))
    with pytest.raises(IndexError):
        images.float([256])


def test_a_selection_has_the_chosen_classes_in_the_order_given_without_copying_pixels(numbered: Numbered) -> None:
    images = numbered([2, 3, 0, 4])
    chosen = images.select([3, 0])
    assert chosen.class_names == ("d", "a")
    assert chosen.counts.tolist() == [4, 2]
    assert chosen.offsets.tolist() == [0, 4]
    assert chosen.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert chosen.uint8(range(6))[:, 0, 0, 0].tolist() == [5, 6, 7, 8, 0, 1]
    assert torch.equal(chosen.images, chosen.uint8(range(6)))
    images.images[5] = 99
    assert chosen.uint8(0).flatten()[0] == 99
    again = chosen.select([1])
    assert (again.class_names, again.uint8([0, 1])[:, 0, 0, 0].tolist()) == (("a",), [0, 1])
    with pytest.raises(IndexError):
        again.uint8(2)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), [0, 1], "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), [0, 1], r"\(2, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0], "one number per image, 2"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [1, 0], "ascending"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0, 2], "from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(images: torch.Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassImages(images, ["a", "b"], labels)


def test_an_image_is_called_by_its_file_or_by_its_class_and_number(numbered: Numbered) -> None:
    plain = numbered([2, 3, 0, 4])
    assert [plain.name_of(i) for i in (1, 2, 8)] == ["image 1 of a", "image 0 of b", "image 3 of d"]
    assert plain.select([3, 0]).select([1]).name_of(1) == "image 1 of a"
    files = [f"{i}.png" for i in range(9)]
    images = ClassImages(plain.images, plain.class_names, plain.labels, files)
    assert [images.name_of(i) for i in range(9)] == files
    assert [images.select([3, 0]).name_of(i) for i in range(6)] == [f"{i}.png" for i in (5, 6, 7, 8, 0, 1)]
    assert images.select([3, 1, 0]).select([1, 2]).name_of(4) == "1.png"
    with pytest.raises(IndexError):
        images.select([3, 0]).name_of(6)
    with pytest.raises(DataError, match="one path per image, 9; got 8"):
        ClassImages(plain.images, plain.class_names, plain.labels, files[1:])


def test_a_support_holds_distinct_other_images_of_the_targets_class(numbered: Numbered) -> None:
    images = numbered([6, 7, 30])
    episodes = images.episodes(43, 5, seed=1)
    assert episodes.supports.shape == (43, 5)
    members = np.column_stack([episodes.targets, episodes.supports])
    assert all(len(set(row)) == 6 for row in members)
    assert (images.labels[members] == episodes.labels[:, None]).all()


def test_targets_are_all_images_once_before_any_comes_again(numbered: Numbered) -> None:
    images = numbered([6, 7, 30])
    targets = images.episodes(100, 2, seed=1).targets
    assert sorted(targets[:43]) == sorted(targets[43:86]) == list(range(43))
    assert len(set(targets[86:])) == 14
    assert targets[:43].tolist() != targets[43:86].tolist() != list(range(43))


def test_an_episode_depends_on_its_index_and_the_seed_not_on_how_many_there_are(numbered: Numbered) -> None:
    images = numbered([6, 7, 30])
    few, many = images.episodes(10, 4, seed=3), images.episodes(90, 4, seed=3)
    assert np.array_equal(few.targets, many.targets[:10])
    assert np.array_equal(few.supports, many.supports[:10])
    assert np.array_equal(few.labels, many.labels[:10])
    other = images.episodes(10, 4, seed=4)
    assert not np.array_equal(few.targets, other.targets)


def test_every_other_image_is_equally_likely_in_every_place_of_a_support(numbered: Numbered) -> None:
    images = numbered([5])
    episodes = images.episodes(20_000, 3, seed=0)
    of_first = episodes.supports[episodes.targets == 0]
    shares = np.stack([(of_first == i).mean(0) for i in range(5)])
    assert (shares[0] == 0).all()
    assert np.abs(shares[1:] - 0.25).max() < 0.03


def test_impossible_episodes_are_refused_with_the_class_and_the_numbers(numbered: Numbered) -> None:
    with pytest.raises(
        DataError, match=r"support of 6 .* need 7 images of a class; 1 of 3 classes have fewer: a \(6\)"
    ):
        numbered([6, 7, 30]).episodes(4, 6, seed=0)
    with pytest.raises(ConfigError, match="shots 0"):
        numbered([6]).episodes(4, 0, seed=0)
    with pytest.raises(DataError, match="no images"):
        numbered([0]).episodes(4, 1, seed=0)
