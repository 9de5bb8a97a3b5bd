"""Leave-one-out, completion, subsampling and patches, against loops that are plain to read."""

from __future__ import annotations

import numpy as np

from lightning_vfs.core import complete, leave_one_out, stack_patches, subsample, unpatchify

X = np.random.default_rng(0).normal(size=(2, 4, 3, 8, 8)).astype(np.float32)


def test_leave_one_out_gives_every_image_the_others_in_order(array) -> None:
    others = np.asarray(leave_one_out(array(X)))
    assert others.shape == (2, 4, 3, 3, 8, 8)
    for i in range(4):
        np.testing.assert_array_equal(others[:, i], np.delete(X, i, axis=1))


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
