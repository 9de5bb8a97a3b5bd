"""The evaluation of one split: images generated for its classes, and every figure of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.encoder_config import EncoderConfig
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.files import hash_of
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.data.pictures import save_png, to_uint8
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.evaluation.record import Figure, LikelihoodRecord, SplitRecord
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.metrics import FewShotAccuracy, FidelityMetric, ImageFeatures
from lightning_vfs.metrics.few_shot import check_way
from lightning_vfs.metrics.fidelity import FidelityOptions, check_classes, check_enough
from lightning_vfs.metrics.indexed import IndexedRows


@dataclass(frozen=True)
class EvaluationPlan:
    """What is made and computed for every split; see FIDCallback, whose options these are."""

    num_images: int = 1000
    num_real_images: int | None = None
    ways: tuple[int, ...] = (20,)
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    options: FidelityOptions = field(default_factory=FidelityOptions)
    per_class: bool | tuple[str, ...] = False
    save_images: Path | None = None
    vlb_images: int = 0
    vlb_steps: int | None = None


class SplitResult(NamedTuple):
    """What came of a split: figures by name (`class/<name>` is FID of a class), its record, and notes on them."""

    figures: dict[str, Figure]
    record: SplitRecord
    notes: tuple[str, ...]
    likelihood: LikelihoodRecord | None


class SplitEvaluation:
    """Figures of images generated for the classes of one split, against its real images.

    Image i is generated from the support of episode i, or whatever else of it the model is conditioned on; the
    episode's class is what few_shot_accuracy asks for.

    Args:
        name: the split of the data.
        images: its images.
        features: the extractor.
        plan: what is made and computed.

    Raises:
        EvaluationError: the split has fewer images or classes than asked for.
    """

    def __init__(self, name: str, images: ClassImages, features: ImageFeatures, plan: EvaluationPlan) -> None:
        if plan.num_real_images is not None and len(images) < plan.num_real_images:
            raise EvaluationError(
                f"num_real_images is {plan.num_real_images}, but split {name!r} has {len(images)} images: "
                f"take at most {len(images)}, or null for all of them."
            )
        self.name, self.images, self.features, self.plan = name, images, features, plan
        self.real = RealImages(name, images, features, plan.num_real_images, plan.num_images, plan.seed)
        check_enough(features.layers, plan.num_images, len(self.real.chosen), plan.options, f"split {name!r}")
        if plan.ways:
            check_way(torch.bincount(self.real.labels, minlength=images.num_classes), max(plan.ways))
        self.classes = self._chosen_classes()
        self.fidelity = FidelityMetric(features, options=plan.options)
        self.accuracy: FewShotAccuracy | None = None
        self._real_accuracy: dict[int, float] = {}

    def _chosen_classes(self) -> list[int]:
        """Indices of the classes that get a FID of their own; names of other splits are left to those."""
        if self.plan.per_class is True:
            return list(range(self.images.num_classes))
        wanted = self.plan.per_class or ()
        return [i for i, name in enumerate(self.images.class_names) if name in wanted]

    def episodes(self, shots: int | None) -> Episodes:
        """What is generated: a support of `shots` images for each of `num_images` images, of the same classes for any.

        Raises:
            DataError: a class has too few images.
            EvaluationError: a class of `per_class` has too few images for a FID of its own.
        """
        episodes = self.images.episodes(self.plan.num_images, shots or 1, self.plan.seed)
        labels = torch.from_numpy(episodes.labels)
        check_classes(labels, self.real.labels, self.classes, self.images.class_names)
        return episodes

    def evaluate(self, model: Any, shots: int | None, share: RankShard) -> SplitResult:
        """Generate, and compare with the real images. Collective: every rank calls it with its own share.

        Args:
            model: its `generate` makes the images; it is asked for `bits_per_dim` where the plan has `vlb_images`.
            shots: images in a support; None for a model that takes none.
            share: what this rank does of it.

        Returns:
            Figures, the same on all ranks. An image that is not finite makes the distances NaN, and counts as wrong in
            few_shot_accuracy.
        """
        episodes = self.episodes(shots)
        self._take_real(share)
        for batch in share.batches(len(episodes), f"Evaluation: generating, {self.name}"):
            self._generate(model, episodes, batch, share)
        figures, notes = self._compare(torch.from_numpy(episodes.labels), share)
        likelihood = None
        if self.plan.vlb_images:
            with share.timing("likelihood"):
                likelihood = self._likelihood(model, episodes, share)
            figures["vlb"] = Figure(likelihood.prior + sum(likelihood.terms))
        return SplitResult(figures, self._record(episodes, shots), notes, likelihood)

    # -- real images -------------------------------------------------------------------------------------------------

    def _take_real(self, share: RankShard) -> None:
        rows = self.real.features(share)
        self.fidelity.to(share.device)
        mine = np.arange(share.rank, len(self.real.chosen), share.world_size)
        self.fidelity.update({layer: values[mine] for layer, values in rows.items()}, True, torch.from_numpy(mine))
        if self.plan.ways and self.accuracy is None:
            self.accuracy = FewShotAccuracy(rows[self._layer], self.real.labels, self.plan.ways, self.plan.seed)
            self.accuracy.to(share.device)
            for batch in share.batches(len(self.real.chosen), f"Evaluation: accuracy of real images, {self.name}"):
                index = torch.from_numpy(batch)
                self.accuracy.update(rows[self._layer][index], self.real.labels[index], index, leave_one_out=True)
            self._real_accuracy = self._accuracies()
        if self.plan.save_images is not None:
            for i in mine:
                image = self.images.uint8(self.real.chosen[i])
                save_png(image, self.plan.save_images / self.name / "real" / f"{i:06d}.png")

    @property
    def _layer(self) -> str:
        return next(iter(self.features.layers.values()))

    def _accuracies(self) -> dict[int, float]:
        assert self.accuracy is not None
        found = self.accuracy.compute().reshape(-1).tolist()
        self.accuracy.reset()
        return dict(zip(self.plan.ways, found, strict=True))

    # -- generated images --------------------------------------------------------------------------------------------

    def _conditions(self, encoder: EncoderConfig, episodes: Episodes, batch: np.ndarray) -> dict[str, Tensor | None]:
        """What a model is conditioned on: supports (m, shots, c, h, w), or labels (m,), or neither."""
        by_label = encoder.architecture == "class_label"
        return {
            "support": self.images.float(episodes.supports[batch]) if encoder.takes_support else None,
            "label": torch.from_numpy(episodes.labels[batch]) if by_label else None,
        }

    def _generate(self, model: Any, episodes: Episodes, batch: np.ndarray, share: RankShard) -> None:
        index = torch.from_numpy(batch)
        conditions = self._conditions(model.config.encoder, episodes, batch)
        with share.timing("generation"):
            images = model.generate(index=index, seed=self.plan.seed, sampling=self.plan.sampling, **conditions)
        with share.timing("features"):
            pixels = to_uint8(images)
            features = self.features(pixels)
            broken = ~images.flatten(1).isfinite().all(dim=1)
            for rows in features.values():
                rows[broken] = torch.nan
            self.fidelity.update(features, real=False, index=index)
            if self.accuracy is not None:
                self.accuracy.update(features[self._layer], torch.from_numpy(episodes.labels[batch]), index)
        if self.plan.save_images is not None:
            for i, image in zip(batch, pixels.cpu(), strict=True):
                save_png(image, self.plan.save_images / self.name / "generated" / f"{i:06d}.png")

    def _compare(self, labels: Tensor, share: RankShard) -> tuple[dict[str, Figure], tuple[str, ...]]:
        """All figures of the generated images whose features are there, with their floors."""
        floors, sizes = self.real.floors(share, self.plan.options), self.real.floor_sizes
        with share.timing("distance"):
            figures = {
                name: Figure(float(value), floors.get(name), sizes if name in floors else None)
                for name, value in self.fidelity.compute().items()
            }
            notes = tuple(f"{metric} of {self.name}: {text}" for metric, text in self.fidelity.notes().items())
            if self.classes:
                found = self.fidelity.per_class(labels, self.real.labels, self.classes)
                figures |= {f"class/{self.images.class_names[c]}": Figure(found[c]["fid"]) for c in self.classes}
            self.fidelity.reset()
            self.fidelity.cpu()
            if self.accuracy is not None:
                figures |= self._accuracy_figures(self._accuracies())
        return figures, notes

    def _accuracy_figures(self, found: dict[int, float]) -> dict[str, Figure]:
        """few_shot_accuracy among the most classes by that name, among fewer with their number in it."""
        figures = {}
        for way, accuracy in found.items():
            name = "few_shot_accuracy" + ("" if way == max(self.plan.ways) else f"_{way}")
            real = self._real_accuracy[way]
            figures[name] = Figure(accuracy, real, (len(self.real.chosen),) * 2, 1 / way)
            figures[f"{name}_real"] = Figure(real, chance=1 / way)
        return figures

    # -- likelihood --------------------------------------------------------------------------------------------------

    def _likelihood(self, model: Any, episodes: Episodes, share: RankShard) -> LikelihoodRecord:
        """Means over images of the variational bound's parts; of the first targets, conditioned as in generation."""
        count = min(self.plan.vlb_images, len(episodes))
        steps = self.plan.vlb_steps or model.config.diffusion.timesteps
        parts: dict[str, tuple[int, ...]] = {
            "prior": (), "terms": (steps,), "xstart_mse": (steps,), "eps_mse": (steps,)
        }  # fmt: skip
        gathered = IndexedRows(parts).to(share.device)
        bound = partial(model.bits_per_dim, steps=self.plan.vlb_steps, seed=self.plan.seed)
        for batch in share.batches(count, f"Evaluation: variational bound, {self.name}"):
            index = torch.from_numpy(batch)
            conditions = self._conditions(model.config.encoder, episodes, batch)
            found = bound(self.images.float(episodes.targets[batch]), index=index, **conditions)
            gathered.update({part: getattr(found, part) for part in parts}, index)
        means: dict[str, Any] = {
            name: rows.cpu().double().mean(dim=0).tolist() for name, rows in gathered.compute().items()
        }
        return LikelihoodRecord(
            num_images=count,
            steps=steps,
            prior=means["prior"],
            terms=tuple(means["terms"]),
            xstart_mse=tuple(means["xstart_mse"]),
            eps_mse=tuple(means["eps_mse"]),
        )

    # -- record ------------------------------------------------------------------------------------------------------

    def _record(self, episodes: Episodes, shots: int | None) -> SplitRecord:
        def per_class(labels: np.ndarray) -> dict[str, int]:
            counts = np.bincount(labels, minlength=self.images.num_classes)
            return dict(zip(self.images.class_names, counts.tolist(), strict=True))

        return SplitRecord(
            data_split=self.name,
            classes=self.images.class_names,
            num_images=len(episodes),
            num_real_images=len(self.real.chosen),
            generated_per_class=per_class(episodes.labels),
            real_per_class=per_class(self.images.labels[self.real.chosen]),
            images_sha256=self.real.pixels_sha256,
            real_images_sha256=hash_of(self.real.chosen),
            supports_sha256=None if shots is None else hash_of(episodes.targets, episodes.supports),
        )


def check_class_names(wanted: Sequence[str], evaluations: Sequence[SplitEvaluation]) -> None:
    """Raise ConfigError for a class of `per_class` that no evaluated split has."""
    known = {name for evaluation in evaluations for name in evaluation.images.class_names}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"per_class names {', '.join(unknown)}, but no evaluated split has such a class; "
            f"there are {', '.join(sorted(known)[:5])}, ..."
        )
