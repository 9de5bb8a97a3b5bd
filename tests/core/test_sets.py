"""Leave-one-out, completion, subsampling and patches, against loops that are plain to read."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_vfs.core import complete, leave_one_out, stack_patches, subsample, unpatchify
from lightning_vfs.core.sets import keep_first, pool_tokens, seen_images, set_mean
from tests.numerics import rounding

pytestmark = pytest.mark.numeric

X = np.random.default_rng(0).normal(size=(2, 4, 3, 8, 8)).astype(np.float32)


def test_leave_one_out_gives_every_image_the_others_in_order(array) -> None:
    others = np.asarray(leave_one_out(array(X)))
    assert others.shape == (2, 4, 3, 3, 8, 8)
    for i in range(4):
        np.testing.assert_array_equal(others[:, i], np.delete(X, i, axis=1))


@pytest.mark.parametrize("leave_out", [True, False])
def test_an_image_sees_the_first_of_the_others(array, leave_out: bool) -> None:
    others = [[j for j in range(4) if j != i or not leave_out] for i in range(4)]
    seen = np.asarray(seen_images(array(X), leave_out))
    assert seen.shape == (1, 4, 4)
    assert [list(np.flatnonzero(row)) for row in seen[0]] == others
    few = np.asarray(seen_images(array(X), leave_out, array(np.array([1, 3]))))
    for b, shots in enumerate((1, 3)):
        assert [list(np.flatnonzero(row)) for row in few[b]] == [each[:shots] for each in others]


def test_completion_appends_zero_images(array) -> None:
    filled = np.asarray(complete(array(X), 6))
    np.testing.assert_array_equal(filled[:, :4], X)
    np.testing.assert_array_equal(filled[:, 4:], np.zeros((2, 2, 3, 8, 8)))
    np.testing.assert_array_equal(np.asarray(complete(array(X), 4)), X)


def test_subsampling_is_by_seed_and_keeps_the_order(array) -> None:
    taken = np.asarray(subsample(array(X), 2, seed=1))
    np.testing.assert_array_equal(taken, np.asarray(subsample(array(X), 2, seed=1)))
    where = [next(j for j in range(4) if np.array_equal(taken[0, i], X[0, j])) for i in range(2)]
    assert where[0] < where[1]
    chosen = {tuple(np.asarray(subsample(array(X), 2, seed=s))[0, :, 0, 0, 0]) for s in range(20)}
    assert len(chosen) > 1


def test_patches_stack_channels_outermost_then_set_members(array) -> None:
    patches = np.asarray(stack_patches(array(X), 2))
    assert patches.shape == (2, 16, 2 * 2 * 3 * 4)
    for p1 in range(2):
        for p2 in range(2):
            for c in range(3):
                for s in range(4):
                    column = ((p1 * 2 + p2) * 3 + c) * 4 + s
                    np.testing.assert_array_equal(patches[0, 5, column], X[0, s, c, 2 + p1, 2 + p2])


def test_unpatchify_undoes_the_patches_of_single_images(array) -> None:
    images = X[:, :1]
    np.testing.assert_array_equal(np.asarray(unpatchify(stack_patches(array(images), 4), 4, 3)), images[:, 0])


def test_all_but_the_first_images_become_zero(array) -> None:
    kept = np.asarray(keep_first(array(X), array(np.array([1, 3]))))
    np.testing.assert_array_equal(kept[0, :1], X[0, :1])
    np.testing.assert_array_equal(kept[1, :3], X[1, :3])
    assert not kept[0, 1:].any()
    assert not kept[1, 3:].any()


def test_the_mean_over_a_set_is_of_its_first_members(array) -> None:
    np.testing.assert_allclose(np.asarray(set_mean(array(X))), X.mean(axis=1), **rounding(4, np.abs(X).max()))
    means = np.asarray(set_mean(array(X), array(np.array([1, 3]))))
    np.testing.assert_allclose(means, np.stack([X[0, 0], X[1, :3].mean(axis=0)]), **rounding(4, np.abs(X).max()))


def test_neighbouring_tokens_are_averaged(array) -> None:
    tokens = X.reshape(2, 12, -1)
    pooled = np.asarray(pool_tokens(array(tokens), 4))
    np.testing.assert_allclose(
        pooled,
        np.stack([tokens[:, 3 * i : 3 * i + 3].mean(axis=1) for i in range(4)], 1),
        **rounding(4, np.abs(X).max()),
    )
