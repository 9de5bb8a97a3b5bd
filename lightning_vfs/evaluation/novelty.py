"""Whether generated images are new: the figures of a split that copying the support cannot improve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import hash_of
from lightning_vfs.evaluation.judging import EpisodeJudge
from lightning_vfs.evaluation.landmarks import NAMES, landmark_images
from lightning_vfs.evaluation.record import Figure
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.evaluation.verdict import verdict
from lightning_vfs.metrics.feature_cache import load_figures, store_figures
from lightning_vfs.metrics.fidelity import FIGURES, FidelityOptions, check_enough, fidelity_figures
from lightning_vfs.metrics.indexed import IndexedRows
from lightning_vfs.metrics.jackknife import fidelity_replicates
from lightning_vfs.metrics.thumbnails import SIDE, thumbnails
from lightning_vfs.training.ranks import on_first_rank

FORMAT = 2
"""Version of the figures of real images in the cache; to be raised when the same key would give others."""

WIDE = 512
"""Dimensions of features up to which FID's replicates cost next to nothing."""
BATCH = 256
"""Images of a landmark made at a time."""


class SplitNovelty:
    """Novelty of the images of one split's episodes, and the figures of images that are made of the supports alone.

    Args:
        judge: of the episodes' images.
        options: of the metrics, for the figures of the landmarks.
        seed: draws the landmarks.

    Attributes:
        baselines: figures of real images and of landmarks, as `copier/fid`, and thresholds.
    """

    def __init__(self, judge: EpisodeJudge, options: FidelityOptions, seed: int) -> None:
        self.judge, self.options, self.seed = judge, options, seed
        self.images, self.episodes, self.real = judge.images, judge.episodes, judge.real
        channels = self.images.uint8([]).shape[1]
        self._rows = IndexedRows({"thumbs": (channels, SIDE, SIDE), "training": ()})
        self.baselines: dict[str, float] | None = None

    # -- generated images ----------------------------------------------------------------------------------------------

    def reset(self, shard: RankShard) -> None:
        """Forget generated images."""
        self._rows.reset()
        self._rows.to(shard.device)

    def update(self, pixels: Tensor, broken: Tensor, index: Tensor) -> None:
        """Add images uint8 (n, c, h, w) by global sample index (n,); those that are `broken` were not finite."""
        thumbs = thumbnails(pixels).masked_fill(broken.cpu()[:, None, None, None], math.nan)
        distances = self.judge.nearest(thumbs, limits=self.judge.limits(self.baselines or {}, index))
        self._rows.update({"thumbs": thumbs, "training": distances.float()}, index)

    # -- real images and landmarks -------------------------------------------------------------------------------------

    def take_real_images(
        self, shard: RankShard, accuracies: Callable[[Tensor], dict[str, float]], content: Mapping[str, Any]
    ) -> None:
        """Find the thresholds, and the figures of real images and of the landmarks, once. Collective.

        Args:
            shard: what this rank does of it.
            accuracies: other figures, by name, of the features (n, d) of images of the episodes.
            content: what those depend on, as plain values.
        """
        if self.baselines is not None:
            return
        self.real.features(shard)
        training = self.judge.training
        key = self.real.describe(self.options) | {"novelty": FORMAT, "shots": self.judge.shots, **content}
        key |= {"layer": self.judge.layer, "training": None if training is None else training.sha256}
        key |= {"episodes": hash_of(self.episodes.targets, self.episodes.supports)}
        key |= {"in": self.judge.trained_on, "classes": hash_of(*self.images.class_names)}
        with shard.timing("distance"):
            self.baselines = on_first_rank(lambda: load_figures(key))
        if self.baselines is None:
            features = self._features_of_landmarks(shard)
            with shard.timing("distance"):
                self.baselines = on_first_rank(lambda: self._compute_baselines(features, accuracies))
                if shard.rank == 0:
                    store_figures(key, self.baselines)

    def _features_of_landmarks(self, shard: RankShard) -> dict[str, dict[str, Tensor]]:
        """Features by layer of the targets and of each landmark."""
        names = NAMES if self.judge.shots else ()
        known = {"real": self.episodes.targets} | ({"copier": self.episodes.supports[:, 0]} if names else {})
        with shard.timing("features"):
            found = dict(zip(known, self.real.features_at(list(known.values()), shard), strict=True))
            for name in names:
                if name not in found:
                    make, shown = partial(self._landmark, name), name.replace("_", " ")
                    found[name] = self.real.features_of(make, len(self.episodes), shard, shown)
        return found

    def _landmark(self, name: str, rows: np.ndarray) -> Tensor:
        """Images uint8 (n, c, h, w) of some episodes (n,)."""
        if name == "real":
            return self.images.uint8(self.episodes.targets[rows])
        return landmark_images(name, self.images, self.episodes, rows, self.seed)

    def _compute_baselines(
        self, features: Mapping[str, Mapping[str, Tensor]], accuracies: Callable[[Tensor], dict[str, float]]
    ) -> dict[str, float]:
        thresholds = self.judge.thresholds()
        found = dict(thresholds)
        for name, by_layer in features.items():
            real, rows = name == "real", np.array_split(np.arange(len(self.episodes)), -(-len(self.episodes) // BATCH))
            thumbs = torch.cat([thumbnails(self._landmark(name, batch)) for batch in rows])
            distances = self.judge.nearest(thumbs, self.episodes.targets if real else None)
            judged = self.judge.judged(thumbs, distances, by_layer[self.judge.layer], thresholds, real)
            figures = {figure: estimate.value for figure, estimate in self.judge.estimates(judged).items()}
            if not real:
                figures |= self._fidelity(by_layer) | accuracies(by_layer[self.judge.layer])
            if "prc" in self.real.layers:
                balls = self.judge.precision_recall(by_layer, self.options.prc_neighborhood, real, replicates=False)
                figures |= {figure: values[0] for figure, values in balls.items() if figure.startswith("novel")}
            found |= {f"{name}/{figure}": value for figure, value in figures.items() if math.isfinite(value)}
        return found

    def _fidelity(self, features: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures of fidelity of a landmark."""
        found: dict[str, float] = {}
        for metric, layer in self.real.layers.items():
            made, real = features[layer], self.real.kept_features[layer]
            try:
                check_enough([metric], len(made), len(real), self.options)
            except EvaluationError:
                continue
            figures = fidelity_figures(metric, made, real, self.options)
            found |= {name: figures[name] for name in FIGURES[metric]}
        return found

    def replicates(self, features: Mapping[str, Tensor], of_fid: bool | None) -> dict[str, list[float]]:
        """Figures of fidelity of generated images and their replicates, 1 + G numbers by name.

        Args:
            features: (n, d) by layer, on the CPU.
            of_fid: whether FID's are computed; None where features have at most `WIDE` dimensions.
        """
        found: dict[str, list[float]] = {}
        for metric, layer in self.real.layers.items():
            made, real = features[layer], self.real.kept_features[layer]
            if metric == "prc":
                found |= self.judge.precision_recall(features, self.options.prc_neighborhood)
            elif metric != "fid" or (made.shape[1] <= WIDE if of_fid is None else of_fid):
                several = fidelity_replicates(metric, made, real, self.judge.groups, self.options)
                found |= {name: [math.nan, *values] for name, values in several.items()}
        return found if self.judge.shots else {n: v for n, v in found.items() if not n.startswith("novel")}

    def beside_landmarks(self, name: str, figure: Figure) -> Figure:
        """A figure, by its name without a split, with its value for each landmark."""
        copier, mean, jittered = ((self.baselines or {}).get(f"{landmark}/{name}") for landmark in NAMES)
        return replace(figure, copier=copier, mean_of_support=mean, jittered_mean=jittered)

    # -- figures -------------------------------------------------------------------------------------------------------

    def figures(self, features: Tensor) -> tuple[dict[str, Figure], dict[str, Any]]:
        """Figures of the generated images whose features (n, d) these are, and their part of the split's record.

        Collective; equal on all ranks.
        """
        rows = self._rows.compute()
        self._rows.reset()
        self._rows.cpu()
        return on_first_rank(lambda: self._figures(rows["thumbs"].cpu(), rows["training"].cpu(), features))

    def _figures(self, thumbs: Tensor, distances: Tensor, features: Tensor) -> tuple[dict[str, Figure], dict[str, Any]]:
        assert self.baselines is not None
        judged = self.judge.judged(thumbs, distances, features, self.baselines)
        estimates = self.judge.estimates(judged)
        classes = len(self.real.labels.unique())
        figures = {}
        for name, estimate in estimates.items():
            real = self.baselines.get(f"real/{name}")
            of = None if real is None else (len(self.episodes),) * 2
            chance = 1 / classes if name == "few_shot_accuracy_all" else None
            figure = Figure(estimate.value, real, of, chance).with_replicates(estimate.replicates)
            figures[name] = self.beside_landmarks(name, figure)
        finite = bool(thumbs.isfinite().all())
        copies, training_copies = judged.copies[:, 0], judged.training_copies[:, 0]
        record: dict[str, Any] = {
            "verdict": verdict(estimates, judged.novelty.chances, copies, training_copies) if finite else None,
            "hits_all": _string(judged.right[:, 0]),
        }
        if self.judge.shots is not None:
            record |= {
                "episodes_without_reference": int(judged.novelty.hits.isnan().sum()),
                "affinity_real": self.baselines.get("real/support_affinity"),
                "affinity_mean_of_support": self.baselines.get("mean_of_support/support_affinity"),
                "affinity_hits": _string(judged.novelty.hits),
                "copies": _string(copies),
            }
        return figures, record


def _string(hits: Tensor) -> str:
    """One character an episode: 1 for a hit, 0 for none, - for one that takes no part."""
    return "".join("-" if math.isnan(hit) else "1" if hit > 0.5 else "0" for hit in hits.tolist())
