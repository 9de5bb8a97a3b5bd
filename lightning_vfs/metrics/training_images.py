"""How near a generated image is to the images that a model was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.files import hash_of
from lightning_vfs.data.images import ClassImages
from lightning_vfs.metrics.thumbnails import digests, thumbnails, variants

MOST_TRAINING_IMAGES = 20_000
"""Training images that generated ones are compared with, drawn by seed where there are more."""
PROJECTED = 24
"""Principal axes of thumbnails that bound distances."""


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
        return list(zip(self.images.labels[indices].tolist(), digests(pixels), strict=True))

    def rows_of(self, indices: np.ndarray) -> list[int]:
        """The row of each of the split's images, for `nearest` to leave out; -1 where it was not drawn."""
        return [self._rows[1].get(key, -1) for key in self._keys(indices, self.images.uint8(indices))]

    def nearest(self, thumbs: Tensor, left_out: Sequence[int] | None = None, limits: Tensor | None = None) -> Tensor:
        """Distance of the nearest variant of each image from any training image.

        A projection bounds distances from below, so that few have to be computed.

        Args:
            thumbs: (n, c, 16, 16).
            left_out: a row for each image that it is not compared with.
            limits: beyond which a distance (n,) need not be known, which saves most of the work for images that are
                far from all.

        Returns:
            float64 (n,); infinite for thumbnails that are not finite; beyond its limit, something that is, too.
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
            if limits is not None:
                bound[~(bound <= limits[i] ** 2 * (1 + 1e-4) + 1)] = math.inf
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
