"""Whose neighbour is a generated image: its support's, or other images' of the class?

Everything is per episode, on thumbnails. Images of a class that equal each other pixel by pixel count once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.metrics.thumbnails import distances, identities, thumbnails

MOST_PAIRED = 200
"""Real images of a class whose distances from all others give the class's scale and the threshold."""
MOST_KEPT = 100_000
"""Thumbnails, of 1 kB, that are kept; more are computed again each time."""


class Novelty(NamedTuple):
    """What the images of episodes are to their supports, each float64 (n,); NaN for episodes that take no part.

    Attributes:
        hits: h, 1 where the nearest real image of the class is one of the support, and 0 elsewhere; ties are shared.
        chances: p, the share of the support among the unique images of the class.
        closeness: distance from the nearest image of the support, in units of the class's scale, the mean distance
            of its unique images.
    """

    hits: Tensor
    chances: Tensor
    closeness: Tensor


class SupportReference:
    """The unique images of the classes of episodes, which generated images are compared with.

    An episode without a unique image of the class outside its support takes no part.

    Args:
        images: the split.
        episodes: its supports.

    Attributes:
        scales: float64 (classes,), mean distance of the unique images of each class; NaN where it is not needed or
            has one alone.
        others: int64 (n,), for each episode a real image outside its support, another one than its target where there
            is one; -1 for episodes that take no part.
    """

    def __init__(self, images: ClassImages, episodes: Episodes) -> None:
        self.images, self.episodes = images, episodes
        self.scales = torch.full((images.num_classes,), math.nan, dtype=torch.float64)
        self.others = np.full(len(episodes), -1)
        self._kept: list[tuple[int, np.ndarray, Tensor, Tensor]] | None = None
        small = images.counts[np.unique(episodes.labels)].sum() * images.uint8([]).shape[1] <= MOST_KEPT
        self._kept = list(self._classes()) if small else None
        closeness, weights, of = [], [], []
        for label, rows, thumbs, same in self._classes():
            paired = distances(thumbs[:MOST_PAIRED], thumbs)
            self.scales[label] = (paired.sum() - paired.diagonal().sum()) / (paired.numel() - len(paired))
            supports = self._support_masks(rows, same, len(thumbs))
            self._choose_others(label, rows, same, supports)
            for row, support in zip(rows.tolist(), supports, strict=True):
                outside = ~support[: len(paired)]
                closeness.append(paired[:, support].amin(dim=1)[outside] / self.scales[label])
                weights.append(torch.full_like(closeness[-1], 1 / max(1, int(outside.sum()))))
                of.append(torch.full((len(closeness[-1]),), row))
        self._values, self._weights, self._of = torch.cat(closeness), torch.cat(weights), torch.cat(of)

    def thresholds(self, quantile: float, keep: Tensor) -> list[float]:
        """This quantile of `closeness` of real images outside the support, every episode weighing the same.

        Args:
            quantile: from 0 to 1.
            keep: the episodes that count, bool (n, columns); there is a threshold of each column.
        """
        return weighted_quantiles(self._values, self._weights[:, None] * keep[self._of], quantile)

    def novelty(self, thumbs: Tensor, leave_targets_out: bool = False) -> Novelty:
        """Compare images with support and class.

        Args:
            thumbs: (n, c, 16, 16), of each episode's image; one that is not finite counts as a hit.
            leave_targets_out: the images are the episodes' targets, and are not compared with themselves; a target
                that equals an image of its support takes no part.
        """
        found = Novelty(*(torch.full((len(thumbs),), math.nan, dtype=torch.float64) for _ in range(3)))
        for label, rows, real, same in self._classes():
            support = self._support_masks(rows, same, len(real))
            counts = torch.ones_like(support)
            if leave_targets_out:
                targets = same[torch.from_numpy(self.episodes.targets[rows] - self.images.offsets[label])]
                counts[torch.arange(len(rows)), targets] = False
            apart = distances(thumbs[rows], real)
            broken = apart.isnan().any(dim=1)
            near = apart.masked_fill(~counts, math.inf)
            tied = near.square() <= near.square().amin(dim=1, keepdim=True) * (1 + 2e-6) + 1e-6
            hits = (tied & support).sum(dim=1) / tied.sum(dim=1).double()
            hits[broken] = 1
            closest = apart.masked_fill(~support, math.inf).amin(dim=1) / self.scales[label]
            # No part: nothing outside the support; or a target that is in it.
            left = (~support & counts).any(dim=1) & ~(support & ~counts).any(dim=1)
            chances = support.sum(dim=1) / counts.sum(dim=1).double()
            for values, mine in zip(found, (hits, chances, closest), strict=True):
                values[torch.from_numpy(rows)] = mine.masked_fill(~left, math.nan)
        return found

    def outside(self, rows: np.ndarray) -> list[np.ndarray]:
        """Unique images of the class that are not in the support, int64, for some episodes (m,)."""
        found, wanted = {}, set(rows.tolist())
        for label, episodes, thumbs, same in self._classes():
            _, first = np.unique(same.numpy(), return_index=True)
            supports = self._support_masks(episodes, same, len(thumbs)).numpy()
            for row, support in zip(episodes.tolist(), supports, strict=True):
                if row in wanted:
                    found[row] = first[~support] + self.images.offsets[label]
        return [found[row] for row in rows.tolist()]

    def _classes(self) -> Iterator[tuple[int, np.ndarray, Tensor, Tensor]]:
        """Class, its episodes, thumbnails (u, c, 16, 16) of its unique images, and which of them each image is."""
        if self._kept is not None:
            yield from self._kept
            return
        order = np.argsort(self.episodes.labels, kind="stable")
        labels, starts = np.unique(self.episodes.labels[order], return_index=True)
        for label, rows in zip(labels.tolist(), np.split(order, starts[1:]), strict=True):
            start = self.images.offsets[label]
            pixels = self.images.uint8(np.arange(start, start + self.images.counts[label]))
            unique, same = identities(pixels).unique(return_inverse=True)
            yield label, rows, thumbnails(pixels[unique]), same

    def _choose_others(self, label: int, rows: np.ndarray, same: Tensor, supports: Tensor) -> None:
        """The unique images that follow the targets, in a circle, outside the supports."""
        _, first = np.unique(same.numpy(), return_index=True)
        offset, unique = self.images.offsets[label], len(first)
        targets = same.numpy()[self.episodes.targets[rows] - offset]
        circle = (targets[:, None] + 1 + np.arange(unique)) % unique
        outside = ~np.take_along_axis(supports.numpy(), circle, axis=1)
        chosen = np.take_along_axis(circle, outside.argmax(axis=1)[:, None], axis=1)[:, 0]
        self.others[rows] = np.where(outside.any(axis=1), first[chosen] + offset, -1)

    def _support_masks(self, rows: np.ndarray, same: Tensor, unique: int) -> Tensor:
        """Which unique images of the class are in the support of these episodes, bool (n, u)."""
        supports = self.episodes.supports[rows]
        start = self.images.offsets[self.episodes.labels[rows[0]]]
        masks = torch.zeros(len(rows), unique, dtype=torch.bool)
        return masks.scatter_(1, same[torch.from_numpy(supports - start)], True)


def weighted_quantiles(values: Tensor, weights: Tensor, quantile: float) -> list[float]:
    """The smallest value up to which values have at least this share of the weights, of each column of weights.

    Args:
        values: float64 (n,).
        weights: (n, columns).
        quantile: from 0 to 1.

    Returns:
        NaN for a column without weight.
    """
    values, order = values.sort()
    found = []
    for column in weights.T:
        shares = column[order].cumsum(dim=0)
        row = int(torch.searchsorted(shares, quantile * shares[-1]))
        found.append(float(values[row]) if shares[-1] > 0 else math.nan)
    return found
