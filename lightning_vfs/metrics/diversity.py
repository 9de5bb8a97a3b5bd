"""Diversity: do images generated from one support vary as much as real images of its class?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_vfs.metrics.episode_figures import ratio
from lightning_vfs.metrics.indexed import IndexedMetric


def mean_squared_distance(images: Tensor) -> Tensor:
    """Of all pairs among the m images of each support, (supports, m, ...) to float64 (supports,); m at least 2."""
    rows = images.cpu().double().flatten(2)
    apart = (rows - rows.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
    return 2 * apart / (rows.shape[1] - 1)


class Diversity(IndexedMetric):
    """Mean squared distance of pairs of images generated from one support, in proportion to that of real images.

    Both are summed over supports first: 1 is the variety of real images of the class, 0 that of a model which answers
    a support with a single image. It does not depend on the order and size of batches or on the number of ranks: see
    `IndexedMetric`.

    Args:
        shape: of an image, or of its features.
        dtype: in which they are kept.
        images: generated from each support, m, at least 2.
        real: `mean_squared_distance` of real images for each support (supports,); NaN for one that takes no part.
    """

    higher_is_better = None

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, images: int, real: Tensor) -> None:
        super().__init__()
        self.images, self.real = images, real.cpu().double()
        self.add_rows("rows", shape, dtype)

    def update(self, images: Tensor, index: Tensor) -> None:
        """Add images (n, ...) of the indices (n,): support s has those from s m to s m + m - 1."""
        self.append("rows", index, images)

    def compute(self) -> Tensor:
        """The figure, a scalar as of `on_device`; NaN without a support, or with an image that is not finite."""
        return self.on_device(torch.tensor(self.on_first_rank(lambda: self._columns(None))[0], dtype=torch.float64))

    def replicates(self, keep: Tensor) -> list[float]:
        """The figure of some supports alone. Collective; equal on all ranks.

        Args:
            keep: those of each figure, bool (supports, figures).
        """
        with self.sync_context():
            return self.on_first_rank(lambda: self._columns(keep)[1:])

    def _columns(self, keep: Tensor | None) -> list[float]:
        index, rows = (each.cpu() for each in self.gathered("rows"))
        support = index // self.images
        whole = torch.bincount(support, minlength=len(self.real)) == self.images
        generated = torch.full_like(self.real, math.nan)
        kept = rows[whole[support]]
        generated[whole] = mean_squared_distance(kept.view(int(whole.sum()), self.images, -1))
        part = whole & self.real.isfinite()
        if keep is None:
            keep = torch.empty(len(part), 0, dtype=torch.bool)
        keep = torch.cat([torch.ones(len(part), 1).bool(), keep.cpu()], dim=1)[part]
        found = ratio(generated[part], self.real[part], torch.arange(int(part.sum())), keep)
        if found is None or not generated[part].isfinite().all():
            return [math.nan] * keep.shape[1]
        return [found.value, *(found.replicates or ())]
