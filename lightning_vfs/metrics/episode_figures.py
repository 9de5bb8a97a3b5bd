"""Figures of episodes that copying the support cannot improve, from what was found of each image.

What was found of n images is (n,), or (n, 1 + G), where column 1 + g is what is found without group g of classes, on
which means, choices and thresholds may depend. The figures have replicates then.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vfs.metrics.jackknife import minima_without
from lightning_vfs.metrics.novelty import Novelty

COPY_QUANTILE = 0.05
"""Share of real images that count as copies, by the definition of copy_rate's threshold."""
DUPLICATE_QUANTILE = 0.01
"""The same, of the threshold below which novel_accuracy takes an image for a training image."""


def nearest_mean_hits(
    features: Tensor,
    labels: Tensor,
    real_features: Tensor,
    real_labels: Tensor,
    left_out: Tensor,
    groups: Tensor | None = None,
) -> Tensor:
    """Whether each image is nearer to the mean of its own class than to that of any other.

    Args:
        features: (n, d).
        labels: class of each (n,), from 0.
        real_features: (m, d), whose means the classes are.
        real_labels: their classes (m,), from 0.
        left_out: rows of the real features (n, k) that an image's own mean leaves out: its support, and itself if it
            is real; -1 for none.
        groups: of each class (classes,), from 0 to G - 1; without group g, its classes cannot be chosen.

    Returns:
        float64 (n,), or (n, 1 + G) with groups: 1 or 0, of which 0 for features that are not finite; NaN where no image
        of the own class is left, and for all where there is one class.
    """
    features, real = features.cpu().double(), real_features.cpu().double()
    known, own = real_labels.unique(return_inverse=True)
    counts = torch.bincount(own)
    sums = torch.zeros(len(known), real.shape[1], dtype=torch.float64).index_add_(0, own, real)
    means = sums / counts[:, None]
    column = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    used = left_out >= 0
    rest = (counts[column] - used.sum(dim=1)).masked_fill(known[column] != labels, 0)
    left = sums[column] - torch.stack([real[row[keep]].sum(dim=0) for row, keep in zip(left_out, used, strict=True)])
    mine = (features - left / rest[:, None]).square().sum(dim=1)
    others = torch.cdist(features, means).square()
    others[torch.arange(len(features)), column] = math.inf
    least = others.amin(dim=1) if groups is None else minima_without(others, groups[known], int(groups.max()) + 1)
    none = (rest < 1) | (len(known) < 2)
    if groups is not None:
        mine, none = mine[:, None], none[:, None]
    return (mine < least).double().masked_fill(none, math.nan)


class Estimate(NamedTuple):
    """A figure of episodes, and how sure it is.

    Attributes:
        value: of the figure.
        error: its standard error, clustered by class; NaN for a single class.
        groups: classes.
        replicates: the figure without each group in turn; None if none were asked for.
    """

    value: float
    error: float
    groups: int
    replicates: tuple[float, ...] | None = None


def ratio(above: Tensor, below: Tensor, clusters: Tensor, keep: Tensor | None = None) -> Estimate | None:
    """sum(above) / sum(below), of the episodes where both are finite; None if there are none.

    Args:
        above: (n,) or (n, 1 + G).
        below: likewise.
        clusters: of the standard error, such as the class of each episode (n,).
        keep: which episodes are in the figure and in each replicate, bool (n, 1 + G) (`Groups.keep`).
    """
    above, below = (each if each.ndim > 1 else each[:, None] for each in (above, below))
    part = above[:, 0].isfinite() & below[:, 0].isfinite()
    above, below = above[part], below[part]
    if not len(above):
        return None
    value = above[:, 0].sum() / below[:, 0].sum()
    _, cluster = clusters[part].unique(return_inverse=True)
    groups = int(cluster.max()) + 1
    residues = above[:, 0] - value * below[:, 0]
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, cluster, residues)
    error = (sums.square().sum() * groups / (groups - 1)).sqrt() / below[:, 0].sum() if groups > 1 else math.nan
    replicates = None
    if keep is not None:
        kept = keep[part].double()
        replicates = tuple(((above * kept).sum(dim=0) / (below * kept).sum(dim=0))[1:].tolist())
    return Estimate(float(value), float(error), groups, replicates)


def share(hits: Tensor, clusters: Tensor, keep: Tensor | None = None) -> Estimate | None:
    """Mean of the hits that are not NaN."""
    return ratio(hits, torch.ones_like(hits), clusters, keep)


def support_affinity(novelty: Novelty, clusters: Tensor, keep: Tensor | None = None) -> Estimate | None:
    """sum(h - p) / sum(1 - p): 0 where a support image is the nearest as often as by chance, 1 where it always is."""
    return ratio(novelty.hits - novelty.chances, 1 - novelty.chances, clusters, keep)


def copy_rate(copies: Tensor, clusters: Tensor, keep: Tensor | None = None) -> Estimate | None:
    """Share of copies (0, 1 or NaN) beyond that of real images, of which `COPY_QUANTILE` count as copies."""
    return share((copies - COPY_QUANTILE) / (1 - COPY_QUANTILE), clusters, keep)


def novel_accuracy(
    right: Tensor, novelty: Novelty, known: Tensor, clusters: Tensor, keep: Tensor | None = None
) -> Estimate | None:
    """sum(a (1 - h)) / sum(1 - p): images of the right class that are not their support's, 0 for copies.

    Args:
        right: a, whether each image is nearest to its class's mean, (n,) or (n, 1 + G).
        novelty: h and p.
        known: whether it nearly equals a training image, bool, (n,) or (n, 1 + G), which makes h 1.
        clusters: class of each episode (n,).
        keep: as `ratio` takes it.
    """
    hits = novelty.hits if right.ndim == known.ndim == 1 else novelty.hits[:, None]
    right = right if right.ndim == hits.ndim else right[:, None]
    known = known if known.ndim == hits.ndim else known[:, None]
    return ratio(right * (1 - hits.masked_fill(known & hits.isfinite(), 1)), 1 - novelty.chances, clusters, keep)
