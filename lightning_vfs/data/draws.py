"""Random draws without replacement, for many rows at once."""

from __future__ import annotations

import numpy as np


def sample_distinct(counts: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `num` distinct numbers below `counts[i]` for every row i, each ordered choice equally likely.

    Row i takes the same part of the random stream however many rows follow, so that the first rows of a longer draw
    are those of a shorter one.

    Args:
        counts: (rows,) int64, each at least `num`.

    Returns:
        (rows, num) int64.
    """
    uniform = rng.random((len(counts), num))
    chosen = np.empty((len(counts), num), dtype=np.int64)
    for j in range(num):
        left = counts - j
        # A rank among the numbers not chosen yet (a product may round up to `left` itself) ...
        draw = np.minimum((uniform[:, j] * left).astype(np.int64), left - 1)
        # ... becomes a number by stepping over the chosen ones, smallest first.
        for smaller in np.sort(chosen[:, :j], axis=1).T:
            draw += draw >= smaller
        chosen[:, j] = draw
    return chosen


def balanced_labels(num_classes: int, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `num` class indices in random order, every class as often as any other up to one: (num,) int64."""
    labels = rng.permutation(num_classes)[np.arange(num) % num_classes]
    rng.shuffle(labels)
    return labels
