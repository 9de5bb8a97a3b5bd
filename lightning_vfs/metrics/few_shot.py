"""Few-shot accuracy: does a generated image show the class that its support showed?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.random_bits import random_bits
from lightning_vfs.metrics.indexed import IndexedMetric


class FewShotAccuracy(IndexedMetric):
    """Share of images whose features are nearest to their class's mean among `way` classes; chance is 1 / way.

    An image is compared, by Euclidean distance of features, with the mean of the real images of its own class and of
    way - 1 others drawn by (seed, global sample index): nearest-mean classification as in prototypical networks, Snell
    et al. 2017, eq. 2. FID does not detect a model that ignores its support; this figure is then at chance.

    The figure depends neither on the order and size of batches nor on the number of ranks: see `IndexedMetric`. Nor
    does it depend on the device: distances are float64 on the CPU, as other figures are, and MPS has no float64.

    Args:
        real_features: features of all real images (m, d); on every rank.
        real_labels: their classes (m,), from 0.
        way: classes to choose among, at least 2; or several such numbers, for one figure each from one pass, the
            same as from separate passes.
        seed: draws the other classes.
        groups: group of each class (classes,), from 0: `replicates` leaves them out in turn, as choices too. An image
            whose choices are fewer then chooses among others, or among fewer where there are none.

    Only classes with at least 2 real images take part, so that generated and real images face the same choice; images
    of other classes are left out.

    Raises:
        ConfigError: a `way` below 2, or none.
        EvaluationError: fewer than `way` classes take part.
    """

    higher_is_better = True

    def __init__(
        self,
        real_features: Tensor,
        real_labels: Tensor,
        way: int | Sequence[int] = 20,
        seed: int = 0,
        groups: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.way = way
        self.ways: tuple[int, ...] = (way,) if isinstance(way, int) else tuple(way)
        if not self.ways or min(self.ways) < 2:
            raise ConfigError(f"way is {way!r}; allowed: a number of classes from 2 on, or several of them.")
        real_features, real_labels = real_features.cpu().double(), real_labels.cpu()
        counts = torch.bincount(real_labels)
        check_way(counts, max(self.ways))
        sums = torch.zeros(len(counts), real_features.shape[1], dtype=torch.float64)
        sums.index_add_(0, real_labels, real_features)
        self.seed = seed
        # No buffers: they stay on the CPU when the metric moves.
        self.means = sums / counts.clamp(min=1).unsqueeze(1)
        self.counts = counts
        self.classes = torch.nonzero(counts >= 2).squeeze(1)
        self.groups = torch.zeros(len(counts), dtype=torch.int64) if groups is None else groups.cpu()
        # Without groups there is no column but that of the figure itself.
        self.columns = 1 if groups is None else 2 + int(self.groups.max())
        largest = 0 if groups is None else int(torch.bincount(self.groups[self.classes]).max())
        self._needed = min(len(self.classes) - 1, max(self.ways) - 1 + largest)
        self.add_rows("hits", (len(self.ways), self.columns), torch.bool)

    @property
    def chance(self) -> Tensor:
        """Accuracy of guessing, 1 / way, in the form of `compute`'s."""
        return self._shaped(1 / torch.tensor(self.ways, dtype=torch.float64))

    def update(self, features: Tensor, labels: Tensor, index: Tensor, leave_one_out: bool = False) -> None:
        """Add images.

        Args:
            features: (n, d).
            labels: class of each image's support (n,), from 0.
            index: global sample index of each (n,).
            leave_one_out: the images are among the real ones; each is excluded from its own class's mean.
        """
        index, hits = self.judged(features, labels, index, leave_one_out)
        self.append("hits", index, hits)

    def judged(
        self, features: Tensor, labels: Tensor, index: Tensor, leave_one_out: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Index (m,) of the images that take part, and their hits, bool (m, ways, columns); as `update` adds them.

        The first column is of the figure, others are without each group.
        """
        features, labels, index = features.detach().cpu().double(), labels.cpu(), index.cpu()
        taking_part = torch.isin(labels, self.classes)
        features, labels, index = features[taking_part], labels[taking_part], index[taking_part]
        others = self._others(index, labels)
        own = (features - self.means[labels]).norm(dim=1)
        other = torch.empty(others.shape, dtype=torch.float64)
        for i, few in enumerate(others):  # one by one they stay in the processor's cache: several times as fast
            other[i] = (features[i] - self.means[few]).norm(dim=1)
        if leave_one_out:
            # x - (N mean - x) / (N - 1) = (x - mean) N / (N - 1)
            count = self.counts[labels]
            own = own * count / (count - 1)
        hits = torch.empty(len(index), len(self.ways), self.columns, dtype=torch.bool)
        for column in range(self.columns):
            there = self.groups[others] != column - 1
            place = there.cumsum(dim=1)
            for i, way in enumerate(self.ways):
                chosen = other.masked_fill(~there | (place > way - 1), torch.inf)
                hits[:, i, column] = own < chosen.amin(dim=1)
        return index, hits

    def compute(self) -> Tensor:
        """Accuracy in [0, 1], a scalar as of `on_device`, or (ways,) if several were given. Collective.

        Raises:
            EvaluationError: no image of a class that takes part.
        """
        _, hits = self.gathered("hits")
        if len(hits) == 0:
            raise EvaluationError("few_shot_accuracy has no image of a class with at least 2 real images to judge.")
        return self._shaped(self.on_device(hits[:, :, 0].cpu().double().mean(dim=0)))

    def replicates(self, groups: Tensor) -> list[list[float]]:
        """The figure without each group of images in turn, a list for each of `ways`. Collective.

        Args:
            groups: group of each image (n,), by its global sample index; the group of its class, where classes have
                groups.
        """
        with self.sync_context():
            return self.on_first_rank(lambda: self._replicates(groups.cpu()))

    def _replicates(self, groups: Tensor) -> list[list[float]]:
        index, hits = (each.cpu() for each in self.gathered("hits"))
        count = max(self.columns - 1, int(groups.max()) + 1)
        columns = torch.arange(count) + 1 if self.columns > 1 else torch.zeros(count, dtype=torch.int64)
        kept = (groups[index][:, None] != torch.arange(count)).double()
        found = (hits[:, :, columns] * kept[:, None]).sum(dim=0) / kept.sum(dim=0)
        return found.tolist()

    def _shaped(self, figures: Tensor) -> Tensor:
        return figures[0] if isinstance(self.way, int) else figures

    def _others(self, index: Tensor, labels: Tensor) -> Tensor:
        """Classes other than its own for each image, by (seed, index), as many as are needed.

        A way takes the first way - 1 of them that are not left out.
        """
        keys = random_bits(index.numpy()[:, None], np.arange(len(self.classes)), self.seed)
        keys[(labels.unsqueeze(1) == self.classes).numpy()] = np.iinfo(np.uint64).max
        drawn = np.argsort(keys, axis=1, kind="stable")[:, : self._needed]
        return self.classes[torch.from_numpy(drawn)]


def check_way(counts: Tensor, way: int) -> None:
    """Raise EvaluationError unless at least `way` classes have 2 or more real images; `counts` (classes,)."""
    enough = int((counts >= 2).sum())
    if enough < way:
        raise EvaluationError(
            f"few_shot_accuracy among {way} classes needs as many classes with at least 2 real images; "
            f"the split has {enough} (of {len(counts)} classes). "
            f"Set few_shot_way to at most {enough}, to null to leave the figure out, or take more real images."
        )
