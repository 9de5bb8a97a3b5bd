"""How much the generated images of a class vary: LPIPS between pairs of them, beside that of real images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.files import hash_of
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.evaluation.intervals import deal, standard_error
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.evaluation.record import Figure
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.metrics.feature_cache import cached_figures
from lightning_vfs.metrics.indexed import IndexedRows
from lightning_vfs.metrics.perceptual import IN_WORDS, SIDE, PairwiseLPIPS, compared_pixels
from lightning_vfs.training.ranks import on_first_rank


class SplitVariety:
    """LPIPS of the images of one split.

    Args:
        network: LPIPS.
        images: the split.
        real: the real images, whose pairs give the floor.
        seed: draws pairs.
    """

    def __init__(self, network: PairwiseLPIPS, images: ClassImages, real: RealImages, seed: int) -> None:
        self.network, self.images, self.real, self.seed = network, images, real, seed
        shape = (images.uint8([]).shape[1], SIDE, SIDE)
        self._rows = IndexedRows({"pixels": shape}, torch.uint8)

    def reset(self, shard: RankShard) -> None:
        """Forget generated images."""
        self._rows.reset()
        self._rows.to(shard.device)

    def update(self, pixels: Tensor, index: Tensor) -> None:
        """Add images uint8 (n, c, h, w) by global sample index (n,)."""
        self._rows.update({"pixels": compared_pixels(pixels)}, index)

    def figures(self, episodes: Episodes, shots: int | None, shard: RankShard) -> dict[str, Figure]:
        """`lpips`, the mean over classes of the mean over pairs; none where no class has two images. Collective."""
        pixels = self._rows.compute()["pixels"].cpu()
        self._rows.reset()
        self._rows.cpu()
        return on_first_rank(lambda: self._figures(pixels, episodes, shots, shard.device))

    def _figures(
        self, pixels: Tensor, episodes: Episodes, shots: int | None, device: torch.device
    ) -> dict[str, Figure]:
        found = self.network.of_classes(pixels, torch.from_numpy(episodes.labels), self.seed, device)
        if not found:
            return {}
        first = episodes.supports[:, 0]
        content = {
            "images": self.real.pixels_sha256, "chosen": hash_of(self.real.chosen), "seed": self.seed,
            "first": hash_of(first, episodes.labels), "lpips": IN_WORDS,
        }  # fmt: skip
        beside = cached_figures(content, lambda: self._baselines(first, episodes.labels, device))
        values = np.array(list(found.values()))
        groups = deal([self.images.class_names[c] for c in found])
        without = [values[groups != group] for group in np.unique(groups)]
        replicates = tuple(float(each.mean()) for each in without) if len(values) > 1 else None
        return {
            "lpips": Figure(
                float(values.mean()),
                beside.get("real"),
                (len(self.real.chosen),) * 2 if "real" in beside else None,
                copier=beside.get("copier") if shots else None,
                standard_error=standard_error(replicates) if replicates else None,
                replicates=replicates,
            )
        }

    def _baselines(self, first: np.ndarray, labels: np.ndarray, device: torch.device) -> dict[str, float]:
        """Of real images, and of the first image of every support."""
        beside: dict[str, float] = {}
        for name, indices, of in (
            ("real", self.real.chosen, self.images.labels[self.real.chosen]),
            ("copier", first, labels),
        ):
            pixels = torch.cat(
                [compared_pixels(self.images.uint8(part)) for part in np.array_split(indices, -(-len(indices) // 1000))]
            )
            means = self.network.of_classes(pixels, torch.from_numpy(of), self.seed, device)
            beside |= {name: float(np.mean(list(means.values())))} if means else {}
        return beside
