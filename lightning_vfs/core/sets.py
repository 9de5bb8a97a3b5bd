"""Sets of images: leave-one-out, as images or as a mask, completion with zero images, subsampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from einops import reduce
from jaxtyping import Bool, Float, Int, Shaped


def leave_one_out(x_set: Shaped[Any, "b n c h w"]) -> Shaped[Any, "b n n-1 c h w"]:
    """For every image of a set the others, in order: (b, n, c, h, w) -> (b, n, n - 1, c, h, w)."""
    xp = array_namespace(x_set)
    b, n, *image = x_set.shape
    # Made where the images are: an index from the host would be a copy, and a wait, in every step on a GPU.
    place = xp.arange(n * (n - 1), device=device(x_set))
    other = place % (n - 1)
    other = other + xp.astype(other >= place // (n - 1), other.dtype)
    return xp.reshape(xp.take(x_set, other, axis=1), (b, n, n - 1, *image))


def seen_images(
    x_set: Shaped[Any, "b n c h w"], leave_out: bool, shots: Int[Any, " b"] | None = None
) -> Bool[Any, "#b n n"]:
    """Which images of a set (columns) each of its images (rows) is conditioned on: bool (b or 1, n, n).

    Args:
        x_set: the sets; only their shape and place matter.
        leave_out: no image is conditioned on itself.
        shots: int (b,), how many of these, in their order, images of set i are conditioned on; all by default.
    """
    xp = array_namespace(x_set)
    place = xp.arange(x_set.shape[1], device=device(x_set))
    row, column = place[:, None], place[None]
    if leave_out:
        seen, order = row != column, column - xp.astype(column > row, column.dtype)
    else:
        seen, order = row == row + 0 * column, column + 0 * row
    return seen[None] if shots is None else seen[None] & (order[None] < shots[:, None, None])


def complete(x_set: Shaped[Any, "b k c h w"], slots: int) -> Shaped[Any, "b {slots} c h w"]:
    """Zero images appended until a set has `slots` images: (b, k, c, h, w) -> (b, slots, c, h, w), k at most slots."""
    xp = array_namespace(x_set)
    b, k, *image = x_set.shape
    if k == slots:
        return x_set
    return xp.concat([x_set, xp.zeros((b, slots - k, *image), dtype=x_set.dtype, device=device(x_set))], axis=1)


def subsample(x_set: Shaped[Any, "b n c h w"], size: int, seed: int) -> Shaped[Any, "b {size} c h w"]:
    """`size` images of every set, chosen by seed, in their order: (b, n, c, h, w) -> (b, size, c, h, w)."""
    xp = array_namespace(x_set)
    chosen = np.sort(np.random.default_rng(seed).permutation(x_set.shape[1])[:size])
    return xp.take(x_set, xp.asarray(chosen, device=device(x_set)), axis=1)


def keep_first(x_set: Shaped[Any, "b s c h w"], shots: Int[Any, " b"]) -> Shaped[Any, "b s c h w"]:
    """Zero images instead of all except the first shots[i] of set i: (b, s, c, h, w), int (b,) -> (b, s, c, h, w)."""
    xp = array_namespace(x_set)
    return x_set * xp.astype(_among_first(x_set, shots), x_set.dtype)


def set_mean(values: Float[Any, "b s *rest"], shots: Int[Any, " b"] | None = None) -> Float[Any, " b *rest"]:
    """Mean over a set, of its first shots[i] members if `shots` is given: (b, s, ...), int (b,) -> (b, ...)."""
    xp = array_namespace(values)
    if shots is None:
        return xp.mean(values, axis=1)
    counts = xp.reshape(xp.astype(shots, values.dtype), (-1,) + (1,) * (values.ndim - 2))
    return xp.sum(values * xp.astype(_among_first(values, shots), values.dtype), axis=1) / counts


def _among_first(values: Any, shots: Any) -> Any:
    """Whether a member is among the first shots[i] of set i: bool (b, s, 1, ..., 1)."""
    xp = array_namespace(values)
    place = xp.arange(values.shape[1], device=device(values))
    return xp.reshape(place[None] < shots[:, None], (*values.shape[:2],) + (1,) * (values.ndim - 2))


def pool_tokens(tokens: Float[Any, "b tokens d"], groups: int) -> Float[Any, "b {groups} d"]:
    """Means of groups of neighbouring tokens: (b, tokens, d) -> (b, groups, d), `groups` a divisor of the tokens."""
    return reduce(tokens, "b (m g) d -> b m d", "mean", m=groups)
