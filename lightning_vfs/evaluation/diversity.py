"""Diversity of a split: more images of some supports, and what they are compared with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.evaluation.judging import EpisodeJudge
from lightning_vfs.evaluation.record import Figure
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.metrics.diversity import Diversity, mean_squared_distance

MOST_SUPPORTS = 200
"""Supports, the first of as many classes, that more than one image is generated of."""
MOST_REAL = 100
"""Real images of a class that are compared with each other."""


class SplitDiversity:
    """Several images of the first episode of each class, against the real images of the class outside its support.

    Args:
        judge: of the split's episodes.
        images: of each support, at least 2; the first is that of the episode itself.
        shard: what this rank does of it; building is collective.

    Attributes:
        rows: the episodes (supports,).
    """

    def __init__(self, judge: EpisodeJudge, images: int, shard: RankShard) -> None:
        self.judge, self.images = judge, images
        self.rows = judge.episodes.first_of_classes(MOST_SUPPORTS)
        outside = [each[:MOST_REAL] for each in judge.reference.outside(self.rows)]
        (features,) = judge.real.features_at([np.concatenate(outside)], shard)
        parts = features[judge.layer].split([len(each) for each in outside])
        pixels = judge.images.uint8([])
        self.metrics = {
            "diversity": Diversity((parts[0].shape[1],), torch.float32, images, _varieties(parts)),
            "diversity_pixels": Diversity(
                tuple(pixels.shape[1:]), torch.uint8, images, _varieties([judge.images.uint8(each) for each in outside])
            ),
        }

    @property
    def more(self) -> int:
        """Images that are generated besides those of the episodes."""
        return len(self.rows) * (self.images - 1)

    def reset(self, shard: RankShard) -> None:
        """Forget generated images."""
        for metric in self.metrics.values():
            metric.reset()
            metric.to(shard.device)

    def episode_of(self, index: np.ndarray) -> np.ndarray:
        """Episode of each of `more` images (n,), by its number."""
        return self.rows[index // (self.images - 1)]

    def add_more(self, features: Tensor, pixels: Tensor, index: np.ndarray) -> None:
        """Add some of the `more` images: features (n, d) and uint8 (n, c, h, w), by number (n,)."""
        self._add(features, pixels, index // (self.images - 1) * self.images + 1 + index % (self.images - 1))

    def add_episodes(self, features: Tensor, pixels: Tensor, index: np.ndarray) -> None:
        """Add images of episodes (n,), of which those that it has no use for are passed over."""
        place = np.searchsorted(self.rows, index).clip(max=len(self.rows) - 1)
        wanted = np.flatnonzero(self.rows[place] == index)
        here = torch.from_numpy(wanted).to(features.device)
        self._add(features[here], pixels[here], place[wanted] * self.images)

    def _add(self, features: Tensor, pixels: Tensor, index: np.ndarray) -> None:
        self.metrics["diversity"].update(features, torch.from_numpy(index))
        self.metrics["diversity_pixels"].update(pixels, torch.from_numpy(index))

    def figures(self) -> dict[str, Figure]:
        """Figures by name, of those that have supports with several real images. Collective; equal on all ranks."""
        keep = self.judge.groups.keep[torch.from_numpy(self.rows), 1:]
        found: dict[str, Figure] = {}
        for name, metric in self.metrics.items():
            if metric.real.isfinite().any():
                figure = Figure(float(metric.compute()), floor=1.0, copier=0.0, mean_of_support=0.0)
                found[name] = figure.with_replicates(metric.replicates(keep))
            metric.reset()
            metric.cpu()
        if found and math.isnan(found["diversity"].value):  # pixels do not say that an image was not finite
            found["diversity_pixels"] = found["diversity"]
        return found


def _varieties(images: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Of real images (n, ...) for each support; NaN for fewer than two."""
    found = [mean_squared_distance(each[None])[0] if len(each) > 1 else torch.tensor(torch.nan) for each in images]
    return torch.stack([each.double() for each in found])
