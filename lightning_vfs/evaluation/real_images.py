"""The real images of a split as features: computed once, kept on disk, and compared with each other for a floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import hash_of
from lightning_vfs.data.images import ClassImages
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.metrics import ImageFeatures
from lightning_vfs.metrics.feature_cache import (
    FeatureSource,
    cached_figures,
    load_features,
    split_sha256,
    store_features,
)
from lightning_vfs.metrics.fidelity import FIGURES, FidelityOptions, check_enough, fidelity_figures
from lightning_vfs.metrics.indexed import IndexedRows
from lightning_vfs.training.ranks import gather_objects, on_first_rank

MOST_REAL_IMAGES = 50_000
"""Real images of a split that generated ones are compared with, unless a number is asked for."""

FLOORS_FORMAT = 2
"""Version of the floors in the cache; to be raised when the same key would give others."""

RESIZE = "inside the extractor, as torch-fidelity's does"


class RealImages:
    """Real images that generated ones are compared with, and others for the floor.

    The floor of a figure is the same metric between two disjoint sets of real images, of the numbers of generated and
    of real images. Where there are too few, all real images are divided in that proportion. Every class is divided
    alike.

    Args:
        name: the split as it is called in progress bars.
        images: the split.
        features: the extractor; None where no features are asked for.
        num_real_images: real images to compare with, the first targets of the episodes; None for all of the split, or
            `MOST_REAL_IMAGES` of it.
        num_images: generated images.
        seed: draws them.
        among: bool (N,), images of the split that may be compared with; None for all.

    Attributes:
        chosen: (m,) int64, indices of the real images in the split.
        notes: what a reader of the figures has to know.
    """

    def __init__(
        self,
        name: str,
        images: ClassImages,
        features: ImageFeatures | None,
        num_real_images: int | None,
        num_images: int,
        seed: int,
        among: np.ndarray | None = None,
    ) -> None:
        self.name, self.images, self.extractor = name, images, features
        self.num_images, self.seed = num_images, seed
        self.chosen = np.arange(len(images)) if among is None else np.flatnonzero(among)
        self.notes: tuple[str, ...] = ()
        if num_real_images is None and len(self.chosen) > MOST_REAL_IMAGES:
            num_real_images = MOST_REAL_IMAGES
            self.notes = (
                f"{name}: generated images are compared with {MOST_REAL_IMAGES:,} of its {len(self.chosen):,} real "
                "ones, drawn by seed; num_real_images takes more.",
            )
        if num_real_images is not None:
            order = images.episodes(len(images), 1, seed).targets
            self.chosen = (order if among is None else order[among[order]])[:num_real_images]
        left = np.setdiff1d(np.arange(len(images)), self.chosen)
        others = self._divided(left, min(num_images, len(left)), (seed, 2))[0]
        self._pool = np.concatenate([self.chosen, others])
        self._rows: dict[str, Tensor] | None = None
        self._floors: dict[str, float] | None = None

    def _divided(self, indices: np.ndarray, size: int, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Indices of images in two random sets, of which the first has this size, with the same share of each class."""
        order = np.random.default_rng(seed).permutation(indices)
        order = order[np.argsort(self.images.labels[order], kind="stable")]
        steps = np.arange(len(order) + 1) * size // max(1, len(order))
        first = steps[1:] > steps[:-1]
        return order[first], order[~first]

    @property
    def labels(self) -> Tensor:
        """Classes (m,) of the chosen images."""
        return torch.from_numpy(self.images.labels[self.chosen])

    @cached_property
    def pixels_sha256(self) -> str:
        """SHA-256 of all images of the split, in order."""
        return split_sha256(self.images)

    @property
    def layers(self) -> dict[str, str]:
        """Of the extractor, by metric; none without one."""
        return {} if self.extractor is None else dict(self.extractor.layers)

    @property
    def floor_sizes(self) -> tuple[int, int]:
        """Images in the two sets that are compared for a floor."""
        generated, real, pool = self.num_images, len(self.chosen), len(self._pool)
        if pool >= generated + real:
            return generated, real
        first = min(max(1, round(pool * generated / (generated + real))), pool - 1)
        return first, pool - first

    def features(self, shard: RankShard) -> dict[str, Tensor]:
        """Features (m, d) of the chosen images by layer, on the CPU; of all ranks on every rank. Collective."""
        if self._rows is None:
            with shard.timing("features"):
                self._rows = self._all_features(shard)
        return self.kept_features

    @property
    def kept_features(self) -> dict[str, Tensor]:
        """Those of `features`, once they are there."""
        assert self._rows is not None
        return {layer: rows[: len(self.chosen)] for layer, rows in self._rows.items()}

    def features_at(self, wanted: Sequence[np.ndarray], shard: RankShard) -> list[dict[str, Tensor]]:
        """Features (n, d) by layer of images of the split, given by index (n,), several times. Collective."""
        self.features(shard)
        assert self._rows is not None
        missing = np.setdiff1d(np.concatenate(wanted), self._pool)
        rows = self._rows
        if len(missing):
            with shard.timing("features"):
                more = self._extracted(missing, shard)
            rows = {layer: torch.cat([rows[layer], more[layer]]) for layer in rows}
        where = np.full(len(self.images), -1)
        where[np.concatenate([self._pool, missing])] = np.arange(len(self._pool) + len(missing))
        return [{layer: values[torch.from_numpy(where[each])] for layer, values in rows.items()} for each in wanted]

    def features_of(
        self, make: Callable[[np.ndarray], Tensor], number: int, shard: RankShard, doing: str
    ) -> dict[str, Tensor]:
        """Features (n, d) by layer of images that are made, on the CPU. Collective.

        Args:
            make: images uint8 (m, c, h, w) by their index (m,).
            number: of images, n.
            shard: what this rank does of it.
            doing: what they are, for the progress bar.
        """
        assert self.extractor is not None
        gathered = IndexedRows({layer: (dim,) for layer, dim in self.extractor.dims.items()}).to(shard.device)
        for batch in shard.batches(number, f"Evaluation: {doing}, {self.name}"):
            gathered.update(self.extractor(make(batch).to(shard.device)), torch.from_numpy(batch))
        return {layer: values.cpu() for layer, values in gathered.compute().items()}

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """Of images of the split, any shape, among the chosen ones; -1 for others."""
        where = np.full(len(self.images), -1)
        where[self.chosen] = np.arange(len(self.chosen))
        return where[indices]

    def describe(self, options: FidelityOptions) -> dict[str, Any]:
        """What figures of real images depend on, as plain values."""
        assert self.extractor is not None
        return self._source.describe() | asdict(options) | {
            "chosen": len(self.chosen), "num_images": self.num_images, "seed": self.seed,
            "layers": dict(self.extractor.layers),
        }  # fmt: skip

    def floors(self, shard: RankShard, options: FidelityOptions) -> dict[str, float]:
        """Floors by the names of figures, of the metrics that the sets are large enough for. Collective.

        The first rank computes them, once: they are kept in the cache.
        """
        if self._floors is None:
            self.features(shard)
            with shard.timing("distance"):
                content = self.describe(options) | {"floors": FLOORS_FORMAT}
                self._floors = on_first_rank(lambda: cached_figures(content, lambda: self._compute_floors(options)))
        return self._floors

    @cached_property
    def _source(self) -> FeatureSource:
        """What features and floors depend on."""
        assert self.extractor is not None
        return FeatureSource(
            images_sha256=hash_of(self.pixels_sha256, self._pool),
            num_images=len(self._pool),
            extractor=self.extractor.name,
            dims=self.extractor.dims,
            weights_sha256=self.extractor.weights_sha256,
            dtype=self.extractor.dtype,
            resize=RESIZE,
        )

    def _all_features(self, shard: RankShard) -> dict[str, Tensor]:
        cached = load_features(self._source)
        # Ranks on different machines may see different caches, but all must take the same branch.
        if all(gather_objects(cached is not None)):
            assert cached is not None
            return cached
        rows = self._extracted(self._pool, shard)
        if shard.rank == 0:
            store_features(self._source, rows)
        return rows

    def _extracted(self, indices: np.ndarray, shard: RankShard) -> dict[str, Tensor]:
        return self.features_of(lambda batch: self.images.uint8(indices[batch]), len(indices), shard, "real images")

    def _compute_floors(self, options: FidelityOptions) -> dict[str, float]:
        assert self._rows is not None and self.extractor is not None
        first, _ = self.floor_sizes
        if len(self._pool) >= self.num_images + len(self.chosen):
            sets = np.arange(len(self.chosen), len(self._pool)), np.arange(len(self.chosen))
        else:
            place = np.full(len(self.images), -1)
            place[self._pool] = np.arange(len(self._pool))
            sets = tuple(place[each] for each in self._divided(self._pool, first, (self.seed, 3)))
        floors: dict[str, float] = {}
        for metric, layer in self.extractor.layers.items():
            one, other = (self._rows[layer][torch.from_numpy(np.sort(rows))] for rows in sets)
            try:
                check_enough([metric], len(one), len(other), options)
            except EvaluationError:
                continue  # a floor that cannot be computed is None in the record
            found = fidelity_figures(metric, one, other, options)
            floors |= {name: found[name] for name in FIGURES[metric]}
        return floors
