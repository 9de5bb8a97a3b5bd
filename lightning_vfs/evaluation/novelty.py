"""Whether generated images are new: the figures of a split that copying the support cannot improve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import hash_of
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.evaluation.record import Figure
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.metrics.feature_cache import cached_figures
from lightning_vfs.metrics.fidelity import FIGURES, FidelityOptions, check_enough, fidelity_figures
from lightning_vfs.metrics.indexed import IndexedRows
from lightning_vfs.metrics.novelty import (
    COPY_QUANTILE,
    DUPLICATE_QUANTILE,
    SIDE,
    Estimate,
    Novelty,
    SupportReference,
    TrainingReference,
    copy_rate,
    nearest_mean_hits,
    novel_accuracy,
    share,
    support_affinity,
    thumbnails,
    weighted_quantile,
)
from lightning_vfs.training.ranks import on_first_rank

FORMAT = 1
"""Version of the figures of real images in the cache; to be raised when the same key would give others."""
COPIES_SUPPORT, COPIES_TRAINING = "copies its support", "copies training images"
AFFINITY_OF_COPIES = 0.5
ROUNDING = 1e-6  # of closeness


class Judged(NamedTuple):
    """What was found of the images of episodes, each (n,); NaN for episodes that take no part."""

    novelty: Novelty
    right: Tensor
    copies: Tensor
    training_copies: Tensor
    known: Tensor


class SplitNovelty:
    """Novelty of the images of one split's episodes.

    Args:
        images: the split.
        episodes: their supports; of one image, which no figure shows, for a model that takes none.
        shots: images in a support; None for a model that takes none.
        real: the real images that class means are made of.
        layer: of the features that class means are made of.
        training: the images that the model was trained on; None leaves train_copy_rate out.
        trained_on: whether the split is that of the training images.
        options: of the metrics, for the figures of the copier.

    Attributes:
        baselines: figures of real images and of the copier, by name.
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
        options: FidelityOptions,
    ) -> None:
        self.images, self.episodes, self.shots, self.real, self.layer = images, episodes, shots, real, layer
        self.training, self.trained_on, self.options = training, trained_on, options
        labels = torch.from_numpy(episodes.labels)
        # Errors of a few clusters are worth nothing: episodes are the clusters there.
        self.clusters = labels if len(labels.unique()) > 3 else torch.arange(len(labels))
        channels = images.uint8([]).shape[1]
        self._rows = IndexedRows({"thumbs": (channels, SIDE, SIDE), "training": ()})
        self._reference: SupportReference | None = None
        self.baselines: dict[str, float] | None = None

    # -- generated images ----------------------------------------------------------------------------------------------

    def reset(self, shard: RankShard) -> None:
        """Forget generated images."""
        self._rows.reset()
        self._rows.to(shard.device)

    def update(self, pixels: Tensor, broken: Tensor, index: Tensor) -> None:
        """Add images uint8 (n, c, h, w) by global sample index (n,); those that are `broken` were not finite."""
        thumbs = thumbnails(pixels).masked_fill(broken.cpu()[:, None, None, None], math.nan)
        distances = self._nearest(thumbs)
        self._rows.update({"thumbs": thumbs, "training": distances.float()}, index)

    def _nearest(self, thumbs: Tensor, images: np.ndarray | None = None) -> Tensor:
        """Distance from training images; `images` are the split's own, which leave themselves out."""
        if self.training is None:
            return torch.full((len(thumbs),), math.inf, dtype=torch.float64)
        own = None if images is None or not self.trained_on else self.training.rows_of(images)
        return self.training.nearest(thumbs, own)

    # -- real images ---------------------------------------------------------------------------------------------------

    @property
    def reference(self) -> SupportReference:
        """Supports and classes, as first asked for."""
        if self._reference is None:
            self._reference = SupportReference(self.images, self.episodes)
        return self._reference

    def take_real_images(self, shard: RankShard) -> None:
        """Find the thresholds, and the figures of real images and of the copier, once. Collective."""
        if self.baselines is None:
            targets, first = self.episodes.targets, self.episodes.supports[:, 0]
            self.target_features, self.copier_features = self.real.features_at([targets, first], shard)
            content = self.real.describe(self.options) | {"novelty": FORMAT, "shots": self.shots, "layer": self.layer}
            content |= {"episodes": hash_of(targets, self.episodes.supports)}
            content |= {"training": None if self.training is None else self.training.sha256, "in": self.trained_on}
            with shard.timing("distance"):
                self.baselines = on_first_rank(lambda: cached_figures(content, self._compute_baselines))

    def _compute_baselines(self) -> dict[str, float]:
        targets, supports = self.episodes.targets, self.episodes.supports
        found = {"threshold": self.reference.threshold()} if (self.reference.others >= 0).any() else {}
        if self.training is not None and found:
            rows = np.flatnonzero(self.reference.others >= 0)
            others = self.reference.others[rows]
            near = self._nearest(thumbnails(self.images.uint8(others)), others) / self._scales[rows]
            weights = torch.ones_like(near)
            found["training_threshold"] = weighted_quantile(near, weights, COPY_QUANTILE)
            found["known_threshold"] = weighted_quantile(near, weights, DUPLICATE_QUANTILE)
        shown = {}
        for name, indices, features in (
            ("real", targets, self.target_features), ("copier", supports[:, 0], self.copier_features)
        ):  # fmt: skip
            thumbs = thumbnails(self.images.uint8(indices))
            real = name == "real"
            distances = self._nearest(thumbs, indices if real else None)
            shown[name] = self._estimates(self._judged(thumbs, distances, features[self.layer], found, real))
        mean = sum(thumbnails(self.images.uint8(column)) for column in supports.T) / supports.shape[1]
        if (of_mean := support_affinity(self.reference.novelty(mean), self.clusters)) and self.shots:
            found["mean/support_affinity"] = of_mean.value
        found |= {f"{kind}/{name}": e.value for kind, each in shown.items() for name, e in each.items()}
        return found | ({} if self.shots is None else self._copier_distances())

    def _copier_distances(self) -> dict[str, float]:
        """Figures of fidelity of the first support images."""
        found: dict[str, float] = {}
        assert self.real.extractor is not None
        for metric, layer in self.real.extractor.layers.items():
            first, real = self.copier_features[layer], self.real.kept_features[layer]
            try:
                check_enough([metric], len(first), len(real), self.options)
            except EvaluationError:
                continue
            figures = fidelity_figures(metric, first, real, self.options)
            found |= {f"copier/{name}": figures[name] for name in FIGURES[metric]}
        return found

    @property
    def _scales(self) -> Tensor:
        return self.reference.scales[torch.from_numpy(self.episodes.labels)]

    # -- figures -------------------------------------------------------------------------------------------------------

    def _judged(
        self, thumbs: Tensor, distances: Tensor, features: Tensor, thresholds: Mapping[str, float], real: bool = False
    ) -> Judged:
        novelty = self.reference.novelty(thumbs, leave_targets_out=real)
        left_out = self.episodes.supports if self.shots else np.empty((len(thumbs), 0), dtype=np.int64)
        if real:
            left_out = np.concatenate([left_out, self.episodes.targets[:, None]], axis=1)
        near, nothing = distances.double() / self._scales, torch.full_like(novelty.hits, math.nan)
        copies = training_copies = nothing
        known = torch.zeros(len(thumbs), dtype=torch.bool)
        if "threshold" in thresholds:
            copies = (novelty.closeness <= thresholds["threshold"] + ROUNDING).double()
            copies = copies.masked_fill(novelty.hits.isnan(), math.nan)
        if "training_threshold" in thresholds:
            training_copies = (near <= thresholds["training_threshold"] + ROUNDING).double()
            training_copies = training_copies.masked_fill(self._scales.isnan(), math.nan)
            known = near <= thresholds["known_threshold"] + ROUNDING
        right = nearest_mean_hits(
            features,
            torch.from_numpy(self.episodes.labels),
            self.real.kept_features[self.layer],
            self.real.labels,
            torch.from_numpy(self.real.positions(left_out)),
        )
        return Judged(novelty, right, copies, training_copies, known)

    def _estimates(self, judged: Judged) -> dict[str, Estimate]:
        """Figures by name, of those that have episodes; without a support, those that need none."""
        found = {
            "few_shot_accuracy_all": share(judged.right, self.clusters),
            "train_copy_rate": copy_rate(judged.training_copies, self.clusters),
        }
        if self.shots is not None:
            found |= {
                "novel_accuracy": novel_accuracy(judged.right, judged.novelty, judged.known, self.clusters),
                "support_affinity": support_affinity(judged.novelty, self.clusters),
                "copy_rate": copy_rate(judged.copies, self.clusters),
            }
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    def figures(self, features: Tensor) -> tuple[dict[str, Figure], dict[str, Any]]:
        """Figures of the generated images whose features (n, d) these are, and their part of the split's record.

        Collective; equal on all ranks.
        """
        assert self.baselines is not None
        rows = self._rows.compute()
        self._rows.reset()
        self._rows.cpu()
        return on_first_rank(lambda: self._figures(rows["thumbs"].cpu(), rows["training"].cpu(), features))

    def _figures(self, thumbs: Tensor, distances: Tensor, features: Tensor) -> tuple[dict[str, Figure], dict[str, Any]]:
        assert self.baselines is not None
        judged = self._judged(thumbs, distances, features, self.baselines)
        estimates = self._estimates(judged)
        classes = len(self.real.labels.unique())
        figures = {
            name: Figure(
                estimate.value,
                self.baselines.get(f"real/{name}"),
                (len(self.episodes),) * 2 if f"real/{name}" in self.baselines else None,
                1 / classes if name == "few_shot_accuracy_all" else None,
                self.baselines.get(f"copier/{name}") if self.shots else None,
                None if math.isnan(estimate.error) else estimate.error,
            )
            for name, estimate in estimates.items()
        }
        finite = bool(thumbs.isfinite().all())
        record: dict[str, Any] = {
            "verdict": self._verdict(judged, estimates) if finite else None,
            "hits_all": _string(judged.right),
        }
        if self.shots is not None:
            record |= {
                "episodes_without_reference": int(judged.novelty.hits.isnan().sum()),
                "affinity_real": self.baselines.get("real/support_affinity"),
                "affinity_mean_of_support": self.baselines.get("mean/support_affinity"),
                "affinity_hits": _string(judged.novelty.hits),
                "copies": _string(judged.copies),
            }
        return figures, record

    def _verdict(self, judged: Judged, estimates: Mapping[str, Estimate]) -> str | None:
        """What the figures say is copied, if the lower 95% bounds say so."""
        said = []
        left = judged.novelty.chances[judged.novelty.chances.isfinite()]
        # Of an affinity at the limit; few episodes that all agree have no error of their own.
        chance = (1 + left) / 2
        limit = float((chance * (1 - chance)).sum().sqrt() / (1 - left).sum()) if len(left) else math.inf
        if _above(estimates.get("support_affinity"), AFFINITY_OF_COPIES, limit) or _above(
            estimates.get("copy_rate"), 0, _error_of_none(judged.copies)
        ):
            said.append(COPIES_SUPPORT)
        if _above(estimates.get("train_copy_rate"), 0, _error_of_none(judged.training_copies)):
            said.append(COPIES_TRAINING)
        return " and ".join(said) or None


def _error_of_none(copies: Tensor) -> float:
    """Standard error of copy_rate where nothing is copied."""
    count = int(copies.isfinite().sum())
    return math.sqrt(COPY_QUANTILE / (1 - COPY_QUANTILE) / count) if count else math.inf


def _above(estimate: Estimate | None, limit: float, least_error: float) -> bool:
    """Whether the lower 95% bound of a figure is above a limit, by Student's t of its clusters."""
    if estimate is None or estimate.groups < 2:
        return False
    z, freedom = 1.6449, estimate.groups - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return estimate.value - t * max(estimate.error, least_error) > limit


def _string(hits: Tensor) -> str:
    """One character an episode: 1 for a hit, 0 for none, - for one that takes no part."""
    return "".join("-" if math.isnan(hit) else "1" if hit > 0.5 else "0" for hit in hits.tolist())
