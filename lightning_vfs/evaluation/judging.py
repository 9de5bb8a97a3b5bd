"""What the image of each episode is to its support, to its class, and to the training images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.metrics.episode_figures import (
    COPY_QUANTILE,
    DUPLICATE_QUANTILE,
    Estimate,
    copy_rate,
    nearest_mean_hits,
    novel_accuracy,
    share,
    support_affinity,
)
from lightning_vfs.metrics.jackknife import Groups
from lightning_vfs.metrics.manifolds import precision_recall
from lightning_vfs.metrics.novelty import Novelty, SupportReference, weighted_quantiles
from lightning_vfs.metrics.thumbnails import thumbnails
from lightning_vfs.metrics.training_images import TrainingReference

ROUNDING = 1e-6  # of closeness


class Judged(NamedTuple):
    """What was found of the images of episodes, NaN for episodes that take no part.

    `right`, `copies`, `training_copies` and `known` are (n, 1 + G), without each group of classes in turn.
    """

    novelty: Novelty
    right: Tensor
    copies: Tensor
    training_copies: Tensor
    known: Tensor


class EpisodeJudge:
    """Judges images of one split's episodes, generated ones, real ones or landmarks.

    Args:
        images: the split.
        episodes: their supports; of one image, which no figure shows, for a model that takes none.
        shots: images in a support; None for a model that takes none.
        real: the real images that class means are made of; their features are there.
        layer: of the features that class means are made of.
        training: the images that the model was trained on; None leaves train_copy_rate out.
        trained_on: whether the split is that of the training images.
        groups: that replicates leave out.
    """

    def __init__(
        self,
        images: ClassImages,
        episodes: Episodes,
        shots: int | None,
        real: RealImages,
        layer: str,
        training: TrainingReference | None,
        trained_on: bool,
        groups: Groups,
    ) -> None:
        self.images, self.episodes, self.shots, self.real, self.layer = images, episodes, shots, real, layer
        self.training, self.trained_on, self.groups = training, trained_on, groups
        self.labels = torch.from_numpy(episodes.labels)
        # Errors of a few clusters are worth nothing: episodes are the clusters there.
        self.clusters = self.labels if groups.classes is not None else torch.arange(len(episodes))
        self._reference: SupportReference | None = None

    @property
    def reference(self) -> SupportReference:
        """Supports and classes, as first asked for."""
        if self._reference is None:
            self._reference = SupportReference(self.images, self.episodes)
        return self._reference

    @property
    def supports(self) -> np.ndarray:
        """Images (n, k) that each generated one was made from; k is 0 without a support."""
        return self.episodes.supports[:, : self.shots or 0]

    def nearest(self, thumbs: Tensor, images: np.ndarray | None = None, limits: Tensor | None = None) -> Tensor:
        """Distance from training images; `images` are the split's own, which leave themselves out.

        Args:
            thumbs: (n, c, 16, 16).
            images: indices (n,).
            limits: beyond which distances need not be known (n,).
        """
        if self.training is None:
            return torch.full((len(thumbs),), math.inf, dtype=torch.float64)
        own = None if images is None or not self.trained_on else self.training.rows_of(images)
        return self.training.nearest(thumbs, own, limits)

    def thresholds(self) -> dict[str, float]:
        """Those of copies and of training images, by the column of the groups that are left out."""
        keep, rows = self.groups.keep, np.flatnonzero(self.reference.others >= 0)
        if not len(rows):
            return {}
        found = {"copies": self.reference.thresholds(COPY_QUANTILE, keep)}
        if self.training is not None:
            others = self.reference.others[rows]
            near = self.nearest(thumbnails(self.images.uint8(others)), others) / self._scales[rows]
            weights = keep[torch.from_numpy(rows)].double()
            found["training"] = weighted_quantiles(near, weights, COPY_QUANTILE)
            found["known"] = weighted_quantiles(near, weights, DUPLICATE_QUANTILE)
        # Where a group has all the episodes that take part, nothing is left to be judged.
        return {
            f"threshold/{kind}/{column}": value if math.isfinite(value) else 0.0
            for kind, values in found.items()
            for column, value in enumerate(values)
        }

    def limits(self, found: Mapping[str, float], index: Tensor) -> Tensor:
        """Distances from training images beyond which images of some episodes (n,) are judged alike."""
        kinds = ("threshold/training/", "threshold/known/")
        largest = max((value for name, value in found.items() if name.startswith(kinds)), default=0.0)
        return (largest + 2 * ROUNDING) * self._scales[index.cpu()]

    @property
    def _scales(self) -> Tensor:
        return self.reference.scales[self.labels]

    def judged(
        self, thumbs: Tensor, distances: Tensor, features: Tensor, found: Mapping[str, float], real: bool = False
    ) -> Judged:
        """Judge the image of each episode.

        Args:
            thumbs: (n, c, 16, 16); NaN for an image that was not finite.
            distances: from training images (n,), as `nearest` gives them.
            features: (n, d), of the layer that class means are made of.
            found: what `thresholds` gave.
            real: the images are the targets, which leave themselves out.
        """
        novelty = self.reference.novelty(thumbs, leave_targets_out=real)
        left_out = np.concatenate([self.supports, self.episodes.targets[:, None]], axis=1) if real else self.supports
        near, columns = distances.double() / self._scales, 1 + self.groups.number

        def below(kind: str, values: Tensor, unknown: Tensor) -> Tensor:
            """Whether values (n,) are up to the thresholds, (n, columns); NaN where they are not known."""
            if f"threshold/{kind}/0" not in found:
                return torch.full((len(values), columns), math.nan, dtype=torch.float64)
            limits = [found[f"threshold/{kind}/{column}"] for column in range(columns)]
            return (
                (values[:, None] <= torch.tensor(limits, dtype=torch.float64) + ROUNDING)
                .double()
                .masked_fill(unknown[:, None], math.nan)
            )

        right = nearest_mean_hits(
            features,
            self.labels,
            self.real.kept_features[self.layer],
            self.real.labels,
            torch.from_numpy(self.real.positions(left_out)),
            self.groups.classes,
        )
        return Judged(
            novelty,
            right if right.ndim > 1 else right[:, None],
            below("copies", novelty.closeness, novelty.hits.isnan()),
            below("training", near, self._scales.isnan()),
            below("known", near, torch.zeros_like(near).bool()) == 1,
        )

    def estimates(self, judged: Judged) -> dict[str, Estimate]:
        """Figures by name, of those that have episodes; without a support, those that need none."""
        clusters, keep = self.clusters, self.groups.keep
        found = {
            "few_shot_accuracy_all": share(judged.right, clusters, keep),
            "train_copy_rate": copy_rate(judged.training_copies, clusters, keep),
        }
        if self.shots is not None:
            found |= {
                "novel_accuracy": novel_accuracy(judged.right, judged.novelty, judged.known, clusters, keep),
                "support_affinity": support_affinity(judged.novelty, clusters, keep),
                "copy_rate": copy_rate(judged.copies, clusters, keep),
            }
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    def precision_recall(
        self, features: Mapping[str, Tensor], neighborhood: int, real: bool = False, replicates: bool = True
    ) -> dict[str, list[float]]:
        """`precision_recall` of images whose features these are by layer; NaN where one is not finite.

        Args:
            features: (n, d) by layer, on the CPU.
            neighborhood: neighbours that a ball reaches to.
            real: they are the targets, which leave themselves out, too.
            replicates: whether they are computed, too.
        """
        layer, left_out = self.real.layers["prc"], self.supports
        if not features[layer].isfinite().all():
            nothing = [math.nan] * (1 + self.groups.number)
            return {name: nothing for name in ("precision", "recall", "novel_precision", "novel_recall")}
        if real:
            left_out = np.concatenate([left_out, self.episodes.targets[:, None]], axis=1)
        return precision_recall(
            features[layer],
            self.real.kept_features[layer],
            neighborhood,
            self.groups.generated,
            self.groups.real,
            self.groups.number if replicates else 0,
            torch.from_numpy(self.real.positions(left_out)),
        )
