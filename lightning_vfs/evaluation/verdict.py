"""What a model copies, if its figures of novelty say so."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lightning_vfs.evaluation.intervals import interval
from lightning_vfs.metrics.episode_figures import COPY_QUANTILE, Estimate

COPIES_SUPPORT, COPIES_TRAINING = "copies its support", "copies training images"
AFFINITY_OF_COPIES = 0.5


def verdict(estimates: Mapping[str, Estimate], chances: Tensor, copies: Tensor, training_copies: Tensor) -> str | None:
    """What is copied, in words, where the lower 95% bounds of the figures say so; None where they do not.

    Args:
        estimates: `support_affinity`, `copy_rate` and `train_copy_rate`, of which some may be missing.
        chances: p of each episode (n,); NaN for those that take no part.
        copies: whether copy_rate counts each image (n,); NaN likewise.
        training_copies: whether train_copy_rate does.
    """
    said = []
    left = chances[chances.isfinite()]
    # Of an affinity at the limit; few episodes that all agree have no error of their own.
    chance = (1 + left) / 2
    limit = float((chance * (1 - chance)).sum().sqrt() / (1 - left).sum()) if len(left) else math.inf
    if _above(estimates.get("support_affinity"), AFFINITY_OF_COPIES, limit) or _above(
        estimates.get("copy_rate"), 0, _error_of_none(copies)
    ):
        said.append(COPIES_SUPPORT)
    if _above(estimates.get("train_copy_rate"), 0, _error_of_none(training_copies)):
        said.append(COPIES_TRAINING)
    return " and ".join(said) or None


def _error_of_none(copies: Tensor) -> float:
    """Standard error of copy_rate where nothing is copied."""
    count = int(copies.isfinite().sum())
    return math.sqrt(COPY_QUANTILE / (1 - COPY_QUANTILE) / count) if count else math.inf


def _above(estimate: Estimate | None, limit: float, least_error: float) -> bool:
    """Whether the lower 95% bound of a figure is above a limit, by Student's t of its clusters."""
    if estimate is None or estimate.groups < 2 or math.isinf(least_error):
        return False
    # One side of a 90% interval.
    low, _ = interval(estimate.value, max(estimate.error, least_error), estimate.groups - 1, level=0.9)
    return low > limit
