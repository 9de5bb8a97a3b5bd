"""EvaluationPlan: what an evaluation generates, and which figures it computes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_vfs.core.checks import as_tuples, check_whole_number
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.data.module import Split
from lightning_vfs.metrics.extractors import INCEPTION, check_metrics
from lightning_vfs.metrics.fidelity import FidelityOptions

SPLITS: dict[str, Split] = {"in": "train", "out": "test"}
"""Split of the data behind each distribution: training classes, and unseen ones."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What an evaluation generates, and which figures it computes.

    Args:
        num_images: images to generate per split, at least 2.
        num_real_images: real images per split, drawn by seed; None for all, at most 50,000.
        images_per_class: images to generate for each class, in place of `num_images`.
        support_pool: images of each class that are set aside, by seed, for supports, so that no generated image is
            compared with one that it may have been generated from: a share of the class, below 1, or a number. None
            takes supports from all images and compares with all. It needs `shots` for models that take a support.
        splits: of `in` and `out`.
        sampling: how images are drawn.
        shots: images in a support; by default as many as condition one generation in training.
        batch_size: images generated at a time; figures do not depend on it.
        metrics: of `fid`, `kid`, `isc` and `prc`; none for the variational bound alone, for which no image is
            generated and no extractor needed.
        feature_extractor: name in torch-fidelity's registry, or the folder of an extractor of one's own (`lightning-vfs
            extractor fit`).
        weights_path: the extractor's weights; default is torch-fidelity's download.
        options: of the metrics.
        per_class: FID of every class, or of the classes named.
        few_shot_way: classes that few_shot_accuracy chooses among, or several such numbers; None leaves it out. Where
            a split has fewer, it chooses among as many as there are, and a note says so.
        diversity_images: images of each of up to 200 supports whose variety is compared with that of real images, at
            least 2; 0 leaves the figure out.
        fid_replicates: whether FID gets an interval, from 20 more distances; None for features of up to 512 dimensions,
            where it takes a second.
        lpips: LPIPS between pairs of generated images of a class (Zhang et al. 2018), how much they vary; higher is
            more. It needs torchvision's weights of VGG16.
        vlb_images: real images per split whose variational bound is computed; 0 leaves it out.
        vlb_steps: timesteps of that bound; all by default.
        seed: draws supports, noise and the classes to choose among.
        save_images: folder for all images, generated and real, as PNGs.

    Raises:
        ConfigError: an option is out of range.
        EvaluationError: an unknown metric.
    """

    num_images: int = 1000
    num_real_images: int | None = None
    images_per_class: int | None = None
    support_pool: float | None = None
    splits: Sequence[Literal["in", "out"]] = ("in", "out")
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    shots: int | None = None
    batch_size: int = 250
    metrics: Sequence[str] = ("fid",)
    feature_extractor: str = INCEPTION
    weights_path: str | os.PathLike[str] | None = None
    options: FidelityOptions = field(default_factory=FidelityOptions)
    per_class: bool | Sequence[str] = False
    few_shot_way: int | Sequence[int] | None = 20
    diversity_images: int = 2
    fid_replicates: bool | None = None
    lpips: bool = False
    vlb_images: int = 0
    vlb_steps: int | None = None
    seed: int = 0
    save_images: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not self.splits or isinstance(self.splits, str) or not set(self.splits) <= set(SPLITS):
            raise ConfigError(f"splits is {self.splits!r}; it must be a list of 'in', 'out' or both.")
        for name, minimum in {"num_images": 2, "batch_size": 1, "vlb_images": 0, "diversity_images": 0}.items():
            check_whole_number(name, getattr(self, name), minimum)
        if self.diversity_images == 1:
            raise ConfigError(
                "diversity_images is 1, but pairs of images are compared: set it to 2 or more, or to 0 for none."
            )
        for name, minimum in {"num_real_images": 2, "images_per_class": 1, "shots": 1, "vlb_steps": 1}.items():
            check_whole_number(name, getattr(self, name), minimum, or_none=True)
        if self.metrics or not self.vlb_images:
            check_metrics(self.metrics)
        elif self.per_class or self.save_images is not None:
            raise ConfigError(
                "metrics is empty, for the variational bound alone, for which no image is generated: set metrics, or "
                "leave out per_class and save_images."
            )
        self._check_pool()
        if self.lpips and not self.metrics:
            raise ConfigError("lpips compares generated images, but metrics is empty, so that none is generated.")
        if any(isinstance(way, bool) or not isinstance(way, int) or way < 2 for way in self.ways):
            raise ConfigError(
                f"few_shot_way is {self.few_shot_way!r}; it must be a whole number of at least 2, or several, or null."
            )
        as_tuples(self, *(name for name, value in vars(self).items() if isinstance(value, list)))

    def _check_pool(self) -> None:
        pool = self.support_pool
        if pool is None:
            return
        number = isinstance(pool, int | float) and not isinstance(pool, bool) and math.isfinite(pool)
        if not (number and (0 < pool < 1 or pool == int(pool) >= 1)):
            raise ConfigError(
                f"support_pool is {pool!r}; it must be a share of each class, above 0 and below 1, or a whole number "
                "of its images, or null."
            )
        if self.shots is not None and 1 <= pool < self.shots:
            raise ConfigError(
                f"support_pool is {pool:g}, but a support has {self.shots} images (shots): set aside at least as many "
                "of each class."
            )

    @property
    def ways(self) -> tuple[int, ...]:
        """Numbers of classes that few_shot_accuracy chooses among; none if it is left out."""
        if self.few_shot_way is None or not self.metrics:
            return ()
        return tuple(self.few_shot_way) if isinstance(self.few_shot_way, Sequence) else (self.few_shot_way,)
