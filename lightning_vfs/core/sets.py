"""Sets of images: leave-one-out, completion with zero images, subsampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device


def leave_one_out(x_set: Any) -> Any:
    """For every image of a set the others, in order: (b, n, c, h, w) -> (b, n, n - 1, c, h, w)."""
    xp = array_namespace(x_set)
    b, n, *image = x_set.shape
    # Made where the images are: an index from the host would be a copy, and a wait, in every step on a GPU.
    place = xp.arange(n * (n - 1), device=device(x_set))
    other = place % (n - 1)
    other = other + xp.astype(other >= place // (n - 1), other.dtype)
    return xp.reshape(xp.take(x_set, other, axis=1), (b, n, n - 1, *image))


def complete(x_set: Any, slots: int) -> Any:
    """Zero images appended until a set has `slots` images: (b, k, c, h, w) -> (b, slots, c, h, w), k at most slots."""
    xp = array_namespace(x_set)
    b, k, *image = x_set.shape
    if k == slots:
        return x_set
    return xp.concat([x_set, xp.zeros((b, slots - k, *image), dtype=x_set.dtype, device=device(x_set))], axis=1)


def subsample(x_set: Any, size: int, seed: int) -> Any:
    """`size` images of every set, chosen by seed, in their order: (b, n, c, h, w) -> (b, size, c, h, w)."""
    xp = array_namespace(x_set)
    chosen = np.sort(np.random.default_rng(seed).permutation(x_set.shape[1])[:size])
    return xp.take(x_set, xp.asarray(chosen, device=device(x_set)), axis=1)
