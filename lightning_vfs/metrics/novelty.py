"""Figures that copying the support cannot improve: whose neighbour is a generated image?

Everything is per episode, on thumbnails of 16 x 16 pixels: their distances tolerate shifts by a pixel and mirroring.
Images of a class that equal each other pixel by pixel count once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from lightning_vfs.core.files import hash_of
from lightning_vfs.data.images import ClassImages, Episodes

SIDE = 16
COPY_QUANTILE = 0.05
"""Share of real images that count as copies, by the definition of copy_rate's threshold."""
DUPLICATE_QUANTILE = 0.01
"""The same, of the threshold below which novel_accuracy takes an image for a training image."""
MOST_TRAINING_IMAGES = 20_000
"""Training images that generated ones are compared with, drawn by seed where there are more."""
MOST_PAIRED = 200
"""Real images of a class whose distances from all others give the class's scale and the threshold."""
MOST_KEPT = 100_000
"""Thumbnails, of 1 kB, that are kept; more are computed again each time."""
PROJECTED = 24
"""Principal axes of thumbnails that bound distances."""
CHUNK = 2**22
"""Distances computed at a time."""


# -- thumbnails and distances ------------------------------------------------------------------------------------------


def thumbnails(images: Tensor) -> Tensor:
    """Means of pixels, float32 (n, c, 16, 16) on the CPU, of images uint8 (n, c, h, w)."""
    return adaptive_avg_pool2d(images.float(), SIDE).cpu()


def variants(thumbs: Tensor) -> Tensor:
    """Thumbnails (n, c, 16, 16) shifted by up to one pixel, edges repeated, and their mirror images: (n, 18, d)."""
    return thumbs.flatten(2)[:, :, _VARIANTS].transpose(1, 2).flatten(2)


def _variant_pixels() -> Tensor:
    """The pixel of a thumbnail that each pixel of each variant comes from, int64 (18, 256)."""
    pixels = torch.arange(SIDE * SIDE, dtype=torch.float32).view(1, SIDE, SIDE)
    padded = pad(pixels, (1, 1, 1, 1), mode="replicate")[0]
    shifted = [padded[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)]
    return torch.stack([*shifted, *(each.flip(-1) for each in shifted)]).flatten(1).long()


_VARIANTS = _variant_pixels()


def distances(thumbs: Tensor, real: Tensor) -> Tensor:
    """Distance of each thumbnail (n, c, 16, 16) from the nearest variant of each real one (m, c, 16, 16).

    Returns:
        float64 (n, m), in grey levels; NaN for thumbnails that are not finite.
    """
    x, y = variants(real).double(), thumbs.flatten(1).double()
    norms, found = x.square().sum(dim=2).flatten(), torch.empty(len(y), len(x), dtype=torch.float64)
    step = max(1, CHUNK // max(1, len(norms)))
    for start in range(0, len(y), step):
        rows = y[start : start + step]
        squared = rows.square().sum(dim=1, keepdim=True) - 2 * rows @ x.flatten(0, 1).T + norms
        found[start : start + step] = squared.view(len(rows), len(x), -1).amin(dim=2)
    return found.clamp(min=0).sqrt()


def identities(images: Tensor) -> Tensor:
    """The row of the first image that equals each one pixel by pixel, int64 (n,), of images uint8 (n, c, h, w)."""
    first: dict[bytes, int] = {}
    keys = _digests(images)
    return torch.tensor([first.setdefault(key, i) for i, key in enumerate(keys)], dtype=torch.int64)


def _digests(images: Tensor) -> list[bytes]:
    rows = images.cpu().flatten(1).contiguous().numpy()
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


# -- against support and class -----------------------------------------------------------------------------------------


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
        closeness, weights = [], []
        for label, rows, thumbs, same in self._classes():
            paired = distances(thumbs[:MOST_PAIRED], thumbs)
            self.scales[label] = (paired.sum() - paired.diagonal().sum()) / (paired.numel() - len(paired))
            supports = self._support_masks(rows, same, len(thumbs))
            self._choose_others(label, rows, same, supports)
            for support in supports:
                outside = ~support[: len(paired)]
                closeness.append(paired[:, support].amin(dim=1)[outside] / self.scales[label])
                weights.append(torch.full_like(closeness[-1], 1 / max(1, int(outside.sum()))))
        self._values, self._weights = torch.cat(closeness), torch.cat(weights)

    def threshold(self, quantile: float = COPY_QUANTILE) -> float:
        """This quantile of `closeness` of real images outside the support, every episode weighing the same."""
        return weighted_quantile(self._values, self._weights, quantile)

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


def weighted_quantile(values: Tensor, weights: Tensor, quantile: float) -> float:
    """The smallest value up to which values have at least this share of the weights."""
    values, order = values.sort()
    share = weights[order].cumsum(dim=0) / weights.sum()
    return float(values[int(torch.searchsorted(share, torch.tensor(quantile, dtype=share.dtype)))])


# -- against training images -------------------------------------------------------------------------------------------


class TrainingReference:
    """The images that a model was trained on; identical ones of a class count once.

    Args:
        images: the split; where it has more than `MOST_TRAINING_IMAGES`, as many are drawn by seed.
        seed: draws them.
    """

    def __init__(self, images: ClassImages, seed: int) -> None:
        self.images, self.seed = images, seed

    @cached_property
    def _rows(self) -> tuple[Tensor, dict[tuple[int, bytes], int]]:
        """Thumbnails (m, d) of the unique images, and the row of each by its class and pixels."""
        chosen = np.arange(len(self.images))
        if len(chosen) > MOST_TRAINING_IMAGES:
            chosen = np.sort(np.random.default_rng((self.seed, 4)).permutation(chosen)[:MOST_TRAINING_IMAGES])
        rows: dict[tuple[int, bytes], int] = {}
        thumbs = []
        for batch in np.array_split(chosen, -(-len(chosen) // 4096)):
            pixels, known = self.images.uint8(batch), len(rows)
            numbers = [rows.setdefault(key, len(rows)) for key in self._keys(batch, pixels)]
            _, first = np.unique(numbers, return_index=True)
            thumbs.append(thumbnails(pixels[[i for i in first if numbers[i] >= known]]).flatten(1))
        return torch.cat(thumbs), rows

    @cached_property
    def sha256(self) -> str:
        """Of the images that it has."""
        return hash_of(*(f"{label} {digest.hex()}" for label, digest in self._rows[1]))

    def _keys(self, indices: np.ndarray, pixels: Tensor) -> list[tuple[int, bytes]]:
        return list(zip(self.images.labels[indices].tolist(), _digests(pixels), strict=True))

    def rows_of(self, indices: np.ndarray) -> list[int]:
        """The row of each of the split's images, for `nearest` to leave out; -1 where it was not drawn."""
        return [self._rows[1].get(key, -1) for key in self._keys(indices, self.images.uint8(indices))]

    def nearest(self, thumbs: Tensor, left_out: Sequence[int] | None = None) -> Tensor:
        """Distance of the nearest variant of each image from any training image.

        A projection bounds distances from below, so that few have to be computed.

        Args:
            thumbs: (n, c, 16, 16).
            left_out: a row for each image that it is not compared with.

        Returns:
            float64 (n,); infinite for thumbnails that are not finite.
        """
        training, found = self._rows[0], torch.full((len(thumbs),), math.inf, dtype=torch.float64)
        projected = self._projected(training)
        norms = projected.square().sum(dim=1)
        for i in thumbs.flatten(1).isfinite().all(dim=1).nonzero().flatten().tolist():
            forms = variants(thumbs[i : i + 1])[0]
            small = self._projected(forms)
            forms = forms.double()
            bound = (norms - 2 * small @ projected.T + small.square().sum(dim=1, keepdim=True)).amin(dim=0)
            if left_out is not None and left_out[i] >= 0:
                bound[left_out[i]] = math.inf
            few = bound.topk(min(16, len(bound)), largest=False).indices
            least = _least(forms, training[few[bound[few].isfinite()]])
            # The slack is for rounding, as projections are float32.
            more = (bound.isfinite() & (bound <= least * (1 + 1e-4) + 1)).nonzero().flatten()
            found[i] = min(least, _least(forms, training[more])) ** 0.5
        return found

    @cached_property
    def _basis(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and first principal axes (d, p) of the training thumbnails."""
        training = self._rows[0].double()
        mean = training.mean(dim=0)
        _, axes = torch.linalg.eigh((training - mean).T @ (training - mean))
        return mean.float(), axes[:, -PROJECTED:].float()

    def _projected(self, thumbs: Tensor) -> Tensor:
        """Coordinates (n, p + 1) of thumbnails (n, d), never farther apart than they are: axes, and what they leave."""
        mean, axes = self._basis
        centred = thumbs - mean
        along = centred @ axes
        rest = (centred.square().sum(dim=1) - along.square().sum(dim=1)).clamp(min=0).sqrt()
        return torch.cat([along, rest[:, None]], dim=1)


def _least(one: Tensor, other: Tensor) -> float:
    """The smallest squared distance between rows (n, d) and (m, d); infinite without rows."""
    if not len(other):
        return math.inf
    other = other.double()
    squared = one.square().sum(dim=1, keepdim=True) - 2 * one @ other.T + other.square().sum(dim=1)
    return max(0.0, squared.amin().item())


# -- accuracy among all classes ----------------------------------------------------------------------------------------


def nearest_mean_hits(
    features: Tensor, labels: Tensor, real_features: Tensor, real_labels: Tensor, left_out: Tensor
) -> Tensor:
    """Whether each image is nearer to the mean of its own class than to that of any other.

    Args:
        features: (n, d).
        labels: class of each (n,), from 0.
        real_features: (m, d), whose means the classes are.
        real_labels: their classes (m,), from 0.
        left_out: rows of the real features (n, k) that an image's own mean leaves out: its support, and itself if it
            is real; -1 for none.

    Returns:
        float64 (n,): 1 or 0, of which 0 for features that are not finite; NaN where no image of the own class is left,
        and for all where there is one class.
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
    hits = (mine < others.amin(dim=1)).double()
    return hits.masked_fill((rest < 1) | (len(known) < 2), math.nan)


# -- figures of episodes -----------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A figure of episodes, and how sure it is.

    Attributes:
        value: of the figure.
        error: its standard error, clustered by class; NaN for a single class.
        groups: classes.
    """

    value: float
    error: float
    groups: int


def ratio(above: Tensor, below: Tensor, clusters: Tensor) -> Estimate | None:
    """sum(above) / sum(below), each (n,), of the episodes where both are finite; None if there are none."""
    part = above.isfinite() & below.isfinite()
    above, below = above[part], below[part]
    if not len(above):
        return None
    value = above.sum() / below.sum()
    _, cluster = clusters[part].unique(return_inverse=True)
    groups = int(cluster.max()) + 1
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, cluster, above - value * below)
    error = (sums.square().sum() * groups / (groups - 1)).sqrt() / below.sum() if groups > 1 else math.nan
    return Estimate(float(value), float(error), groups)


def share(hits: Tensor, clusters: Tensor) -> Estimate | None:
    """Mean of the hits (n,) that are not NaN."""
    return ratio(hits, torch.ones_like(hits), clusters)


def support_affinity(novelty: Novelty, clusters: Tensor) -> Estimate | None:
    """sum(h - p) / sum(1 - p): 0 where a support image is the nearest as often as by chance, 1 where it always is."""
    return ratio(novelty.hits - novelty.chances, 1 - novelty.chances, clusters)


def copy_rate(copies: Tensor, clusters: Tensor) -> Estimate | None:
    """Share of copies beyond that of real images, of which `COPY_QUANTILE` count as copies; `copies` (n,) 0, 1, NaN."""
    return share((copies - COPY_QUANTILE) / (1 - COPY_QUANTILE), clusters)


def novel_accuracy(right: Tensor, novelty: Novelty, known: Tensor, clusters: Tensor) -> Estimate | None:
    """sum(a (1 - h)) / sum(1 - p): images of the right class that are not their support's, 0 for copies.

    Args:
        right: a, whether each image is nearest to its class's mean (n,).
        novelty: h and p.
        known: whether it nearly equals a training image, bool (n,), which makes h 1.
        clusters: class of each episode (n,).
    """
    return ratio(
        right * (1 - novelty.hits.masked_fill(known & novelty.hits.isfinite(), 1)), 1 - novelty.chances, clusters
    )
