"""The evaluation of one split: real features once, generated ones every time, figures from both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_vfs.callbacks.evaluation import to_uint8
from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.metrics import FewShotAccuracy, FidelityMetric, ImageFeatures
from lightning_vfs.metrics.few_shot import check_way


class Share(NamedTuple):
    """What one rank does of a job, and how: every `world_size`-th sample from `rank`, in batches, on its device."""

    rank: int
    world_size: int
    batch_size: int
    device: torch.device
    show_progress: bool

    def batches(self, total: int, doing: str) -> Iterator[np.ndarray]:
        """Global sample indices below `total`, with a progress bar."""
        mine = np.arange(self.rank, total, self.world_size)
        with tqdm(
            total=len(mine), desc=doing, unit=" images", leave=False, mininterval=1, disable=not self.show_progress
        ) as bar:
            for start in range(0, len(mine), self.batch_size):
                batch = mine[start : start + self.batch_size]
                yield batch
                bar.update(len(batch))


class SplitEvaluation:
    """Figures of images generated for the classes of one split, against its real images.

    Image i is generated from the support of episode i; the episode's class is what few_shot_accuracy asks for.

    Args:
        name: the split as it is called in progress bars.
        images: the split.
        features: the extractor.
        num_images: images to generate.
        num_real_images: real images to compare with: the first targets of the episodes, or all images of the split.
        way: classes that few_shot_accuracy chooses among; None leaves it out.
        seed: draws the episodes and the other classes.

    Raises:
        EvaluationError: the split has fewer images or classes than asked for.
    """

    def __init__(
        self,
        name: str,
        images: ClassImages,
        features: ImageFeatures,
        num_images: int,
        num_real_images: int | None,
        way: int | None,
        seed: int,
    ) -> None:
        if len(images) < max(2, num_real_images or 0):
            raise EvaluationError(
                f"num_real_images is {num_real_images}, but split {name!r} has {len(images)} images: "
                f"take at most {len(images)}, or null for all of them."
                if num_real_images
                else f"FID needs at least 2 real images; split {name!r} has {len(images)}."
            )
        self.name, self.images, self.features = name, images, features
        self.num_images, self.way, self.seed = num_images, way, seed
        self.real = np.arange(len(images))
        if num_real_images is not None:
            self.real = images.episodes(num_real_images, 1, seed).targets
        self.labels = torch.from_numpy(images.labels[self.real])
        if way is not None:
            check_way(torch.bincount(self.labels, minlength=images.num_classes), way)
        self.fidelity = FidelityMetric(features, reset_real=False)
        self._has_real = False
        self.accuracy: FewShotAccuracy | None = None
        self.real_accuracy: float | None = None

    def episodes(self, shots: int) -> Episodes:
        """What is generated: a support of `shots` images for each of `num_images` images.

        Raises:
            DataError: a class has too few images.
        """
        return self.images.episodes(self.num_images, shots, self.seed)

    def figures(self, generate: Callable[[Tensor, Tensor], Tensor], shots: int, share: Share) -> dict[str, float]:
        """Generate, and compare with the real images. Collective: every rank calls it with its own share.

        Args:
            generate: supports (m, shots, c, h, w) and global sample indices (m,) -> images (m, c, h, w) in [-1, 1].
            shots: images in a support.
            share: what this rank does of it.

        Returns:
            `fid`, and with `way` also `few_shot_accuracy` and `few_shot_accuracy_real`, that of the real images.
            An image that is not finite makes `fid` NaN, and counts as wrong in the accuracy.
        """
        episodes = self.episodes(shots)
        self.fidelity.to(share.device)
        if not self._has_real:
            self._add_real(share)
            self._has_real = True
        for batch in share.batches(len(episodes), f"Evaluation: generating, {self.name}"):
            index = torch.from_numpy(batch)
            images = generate(self.images.pixels(episodes.supports[batch]), index)
            features = self.features(to_uint8(images))
            broken = ~images.flatten(1).isfinite().all(dim=1)
            for rows in features.values():
                rows[broken] = torch.nan
            self.fidelity.update(features, real=False, index=index)
            if self.accuracy is not None:
                self.accuracy.update(features[self._layer], torch.from_numpy(episodes.labels[batch]), index)
        figures = {name: float(figure) for name, figure in self.fidelity.compute().items()}
        self.fidelity.reset()
        self.fidelity.cpu()
        if self.accuracy is not None and self.real_accuracy is not None:
            figures["few_shot_accuracy"] = float(self.accuracy.compute())
            figures["few_shot_accuracy_real"] = self.real_accuracy
            self.accuracy.reset()
        return figures

    @property
    def _layer(self) -> str:
        return self.features.layers["fid"]

    def _add_real(self, share: Share) -> None:
        for batch in share.batches(len(self.real), f"Evaluation: real images, {self.name}"):
            images = self.images.bytes(self.real[batch]).to(share.device)
            self.fidelity.update(images, real=True, index=torch.from_numpy(batch))
        if self.way is None:
            return
        real = self.fidelity.real_features()[self._layer]
        self.accuracy = FewShotAccuracy(real, self.labels, self.way, self.seed).to(share.device)
        for batch in share.batches(len(self.real), f"Evaluation: few-shot accuracy of real images, {self.name}"):
            index = torch.from_numpy(batch)
            self.accuracy.update(real[index.to(real.device)], self.labels[index], index, leave_one_out=True)
        self.real_accuracy = float(self.accuracy.compute())
        self.accuracy.reset()
