"""How much the generated images of a class vary: LPIPS between pairs of them, beside that of real images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.files import hash_of
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.evaluation.record import Figure
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.metrics.feature_cache import cached_figures
from lightning_vfs.metrics.indexed import IndexedRows
from lightning_vfs.metrics.jackknife import Groups
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
        self._rows = IndexedRows({"pixels": shape, "broken": ()}, torch.uint8)

    def reset(self, shard: RankShard) -> None:
        """Forget generated images."""
        self._rows.reset()
        self._rows.to(shard.device)

    def update(self, pixels: Tensor, broken: Tensor, index: Tensor) -> None:
        """Add images uint8 (n, c, h, w) by global sample index (n,); those that are `broken` were not finite."""
        self._rows.update({"pixels": compared_pixels(pixels), "broken": broken}, index)

    def figures(self, episodes: Episodes, shots: int | None, groups: Groups, shard: RankShard) -> dict[str, Figure]:
        """`lpips`, the mean over classes of the mean over pairs; none where no class has two images. Collective.

        It has replicates where groups are of classes, and is NaN if an image was not finite.
        """
        rows = {name: values.cpu() for name, values in self._rows.compute().items()}
        self._rows.reset()
        self._rows.cpu()
        return on_first_rank(lambda: self._figures(rows, episodes, shots, groups, shard.device))

    def _figures(
        self, rows: dict[str, Tensor], episodes: Episodes, shots: int | None, groups: Groups, device: torch.device
    ) -> dict[str, Figure]:
        found = self.network.of_classes(rows["pixels"], torch.from_numpy(episodes.labels), self.seed, device)
        if not found:
            return {}
        first = episodes.supports[:, 0]
        content = {
            "images": self.real.pixels_sha256, "chosen": hash_of(self.real.chosen), "seed": self.seed,
            "first": hash_of(first, episodes.labels), "lpips": IN_WORDS,
        }  # fmt: skip
        beside = cached_figures(content, lambda: self._baselines(first, episodes.labels, device))
        values = np.array(list(found.values())) if not rows["broken"].any() else np.full(len(found), np.nan)
        of = (len(self.real.chosen),) * 2 if "real" in beside else None
        figure = Figure(float(values.mean()), beside.get("real"), of, copier=beside.get("copier") if shots else None)
        if groups.classes is None:
            return {"lpips": figure}
        dealt = groups.classes.numpy()[list(found)]
        left = [values[dealt != group] for group in range(groups.number)]
        return {"lpips": figure.with_replicates([float(each.mean()) if len(each) else np.nan for each in left])}

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
