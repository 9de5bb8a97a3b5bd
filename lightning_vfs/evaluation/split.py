"""The evaluation of one split: images generated for its classes, and every figure of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.files import begin_files, hash_of, local_path
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.data.pictures import save_png, to_uint8
from lightning_vfs.evaluation.episodes import draw_episodes, support_pool
from lightning_vfs.evaluation.model import conditions_of
from lightning_vfs.evaluation.novelty import SplitNovelty
from lightning_vfs.evaluation.plan import EvaluationPlan
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.evaluation.record import Figure, LikelihoodRecord, SampledImage, SplitRecord
from lightning_vfs.evaluation.sampled_images import describe_images, sampled_indices
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.evaluation.variety import SplitVariety
from lightning_vfs.metrics import FewShotAccuracy, FidelityMetric, ImageFeatures
from lightning_vfs.metrics.fidelity import check_classes, check_enough
from lightning_vfs.metrics.indexed import IndexedRows
from lightning_vfs.metrics.novelty import TrainingReference
from lightning_vfs.metrics.perceptual import PairwiseLPIPS
from lightning_vfs.training.ranks import gather_objects

LISTING = "images.json"
"""File that lists the images of an evaluation in their folder."""


def _image_name(i: int) -> str:
    return f"{i:06d}.png"


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
        features: the extractor; None for a plan without metrics.
        plan: what is made and computed.
        training: the images that the model was trained on, for train_copy_rate; None leaves it out.
        lpips: LPIPS; None leaves it out.

    Attributes:
        ways: numbers of classes that few_shot_accuracy chooses among; the plan's by default.

    Raises:
        EvaluationError: the split has fewer images than asked for.
    """

    features: ImageFeatures  # these two only where the plan has metrics
    fidelity: FidelityMetric

    def __init__(
        self,
        name: str,
        images: ClassImages,
        features: ImageFeatures | None,
        plan: EvaluationPlan,
        training: TrainingReference | None = None,
        lpips: PairwiseLPIPS | None = None,
    ) -> None:
        self.pool = None
        if plan.support_pool is not None:
            self.pool = support_pool(images, plan.support_pool, plan.shots or 1, plan.seed)
        among = None if self.pool is None else ~self.pool
        most = len(images) if among is None else int(among.sum())
        if plan.num_real_images is not None and most < plan.num_real_images:
            aside = "" if among is None else f", {len(images) - most} of them set aside for supports"
            raise EvaluationError(
                f"num_real_images is {plan.num_real_images}, but split {name!r} has {len(images)} images{aside}: "
                f"take at most {most}, or null for all of them."
            )
        self.name, self.images, self.plan = name, images, plan
        per_class = plan.images_per_class
        self.num_images = per_class * int((images.counts > 0).sum()) if per_class else plan.num_images
        self.real = RealImages(name, images, features, plan.num_real_images, self.num_images, plan.seed, among)
        self.variety = None if lpips is None else SplitVariety(lpips, images, self.real, plan.seed)
        self.ways = plan.ways
        self.classes = self._chosen_classes()
        if features is not None:
            self.features = features
            check_enough(features.layers, self.num_images, len(self.real.chosen), plan.options, f"split {name!r}")
            self.fidelity = FidelityMetric(features, options=plan.options)
        self.accuracy: FewShotAccuracy | None = None
        self._real_accuracy: dict[int, float] = {}
        self._copier_accuracy: dict[int, float] = {}
        self._training, self._novelty = training, dict[int | None, SplitNovelty]()
        self._saves = False

    def make_room(self, first_rank: bool) -> None:
        """Prepare the folders of images, if the plan saves them; where they cannot be written, a warning says so.

        Raises:
            ConfigError: they hold images of those names that no evaluation has written; on every rank.
        """
        taken = full = None
        if self.plan.save_images is not None and first_rank:
            try:
                for kind, count in {"real": len(self.real.chosen), "generated": self.num_images}.items():
                    begin_files(self._folder(kind), LISTING, [_image_name(i) for i in range(count)])
            except (ConfigError, OSError) as error:
                full = str(error) if isinstance(error, OSError) or error.__cause__ else None
                taken = None if full else str(error)
        taken, full = gather_objects((taken, full))[0]
        if taken:
            raise ConfigError(taken)
        if full and first_rank:
            warnings.warn(f"Images are not saved: {full}", stacklevel=2)
        self._saves = self.plan.save_images is not None and not full

    def _folder(self, kind: str) -> Path:
        assert self.plan.save_images is not None
        return local_path(self.plan.save_images, "save_images") / self.name / kind

    @property
    def num_choices(self) -> int:
        """Classes that few_shot_accuracy can choose among: those with 2 real images or more."""
        return int((torch.bincount(self.real.labels) >= 2).sum())

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
        plan = self.plan
        episodes = draw_episodes(self.images, self.num_images, shots or 1, plan.seed, self.pool, plan.images_per_class)
        labels = torch.from_numpy(episodes.labels)
        check_classes(labels, self.real.labels, self.classes, self.images.class_names)
        return episodes

    def evaluate(self, model: Any, shots: int | None, shard: RankShard) -> SplitResult:
        """Generate, and compare with the real images. Collective: every rank calls it with its own shard.

        Args:
            model: its `generate` makes the images; it is asked for `bits_per_dim` where the plan has `vlb_images`.
            shots: images in a support; None for a model that takes none.
            shard: what this rank does of it.

        Returns:
            Figures, the same on all ranks. An image that is not finite makes the distances NaN, and counts as wrong in
            few_shot_accuracy.
        """
        episodes = self.episodes(shots)
        figures: dict[str, Figure] = {}
        found: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        if self.plan.metrics:
            self.make_room(shard.rank == 0)
            self._take_real_images(shard)
            novelty = self._take_supports(episodes, shots, shard)
            self._generate_images(model, episodes, novelty, shard)
            figures, found, notes = self._compare(episodes, novelty, shard)
            if self.variety is not None:
                with shard.timing("features"):
                    figures |= self.variety.figures(episodes, shots, shard)
            found["sampled_images"] = self._sampled_images()
        likelihood = self._likelihood(model, episodes, shard) if self.plan.vlb_images else None
        if likelihood is not None:
            figures["vlb"] = Figure(likelihood.prior + sum(likelihood.terms))
        return SplitResult(figures, self._record(episodes, shots, found), self.real.notes + notes, likelihood)

    # -- real images -------------------------------------------------------------------------------------------------

    def _take_real_images(self, shard: RankShard) -> None:
        """Their features go into the metrics, and their own accuracy is found, once."""
        rows = self.real.features(shard)
        mine = np.arange(shard.rank, len(self.real.chosen), shard.world_size)
        self.fidelity.reset()
        self.fidelity.to(shard.device)
        self.fidelity.update({layer: values[mine] for layer, values in rows.items()}, True, torch.from_numpy(mine))
        if self.ways and self.accuracy is None:
            self.accuracy = FewShotAccuracy(rows[self._layer], self.real.labels, self.ways, self.plan.seed)
            self.accuracy.to(shard.device)
            for batch in shard.batches(len(self.real.chosen), f"Evaluation: accuracy of real images, {self.name}"):
                index = torch.from_numpy(batch)
                self.accuracy.update(rows[self._layer][index], self.real.labels[index], index, leave_one_out=True)
            self._real_accuracy = self._accuracies(self.accuracy)
        for i in mine.tolist() if self._saves else ():
            self._save("real", i, self.images.uint8(self.real.chosen[i]))

    def _take_supports(self, episodes: Episodes, shots: int | None, shard: RankShard) -> SplitNovelty:
        """What generated images are to be new to, and the figures of copies of it, are found once for each `shots`."""
        if shots not in self._novelty:
            self._novelty = {
                shots: SplitNovelty(
                    self.images, episodes, shots, self.real, self._layer, self._training,
                    self.name == "train", self.plan.options,
                )
            }  # fmt: skip
            self._novelty[shots].take_real_images(shard)
            self._copier_accuracy = {}
            if self.accuracy is not None and shots is not None:
                copies = self._novelty[shots].copier_features[self._layer]
                self.accuracy.reset()
                for batch in shard.batches(len(episodes), f"Evaluation: accuracy of copies, {self.name}"):
                    index = torch.from_numpy(batch)
                    self.accuracy.update(copies[index], torch.from_numpy(episodes.labels[batch]), index)
                self._copier_accuracy = self._accuracies(self.accuracy)
        return self._novelty[shots]

    @property
    def _layer(self) -> str:
        """Of the features that few_shot_accuracy takes."""
        return next(iter(self.features.layers.values()))

    def _accuracies(self, accuracy: FewShotAccuracy) -> dict[int, float]:
        """By the number of classes to choose among, of the images that it has seen, which it forgets."""
        found = accuracy.compute().reshape(-1).tolist()  # torchmetrics makes a scalar of a single figure
        accuracy.reset()
        return dict(zip(self.ways, found, strict=True))

    # -- generated images --------------------------------------------------------------------------------------------

    def _generate_images(self, model: Any, episodes: Episodes, novelty: SplitNovelty, shard: RankShard) -> None:
        """One for each episode; their features go into the metrics."""
        novelty.reset(shard)
        if self.variety is not None:
            self.variety.reset(shard)
        if self.accuracy is not None:
            self.accuracy.reset()
        wanted = sampled_indices(len(episodes))
        self._sampled: dict[str, SampledImage] = {}
        for batch in shard.batches(len(episodes), f"Evaluation: generating, {self.name}"):
            index = torch.from_numpy(batch)
            conditions = conditions_of(model, self.images, episodes, batch)
            with shard.timing("generation"):
                images = model.generate(index=index, seed=self.plan.seed, sampling=self.plan.sampling, **conditions)
            with shard.timing("features"):
                pixels = to_uint8(images)
                features = self.features(pixels)
                broken = ~images.flatten(1).isfinite().all(dim=1)
                for rows in features.values():
                    rows[broken] = torch.nan
                self.fidelity.update(features, real=False, index=index)
                if self.accuracy is not None:
                    self.accuracy.update(features[self._layer], torch.from_numpy(episodes.labels[batch]), index)
            with shard.timing("distance"):
                novelty.update(pixels, broken, index)
            if self.variety is not None:
                self.variety.update(pixels, index)
            described = np.isin(batch, wanted)
            self._sampled |= describe_images(pixels[torch.from_numpy(described)], batch[described])
            for i, image in zip(batch.tolist(), pixels.cpu(), strict=True) if self._saves else ():
                self._save("generated", i, image)

    def _sampled_images(self) -> dict[str, SampledImage]:
        """Those that the record describes, of all ranks, in the order of their index. Collective."""
        merged = {i: image for each in gather_objects(self._sampled) for i, image in each.items()}
        return dict(sorted(merged.items(), key=lambda item: int(item[0])))

    def _save(self, kind: str, i: int, image: Tensor) -> None:
        folder = self._folder(kind)
        try:
            save_png(image, folder / _image_name(i))
        except OSError as error:
            warnings.warn(f"Image {i} and those that follow are not written to {folder}: {error}.", stacklevel=2)
            self._saves = False

    # -- figures -----------------------------------------------------------------------------------------------------

    def _compare(
        self, episodes: Episodes, novelty: SplitNovelty, shard: RankShard
    ) -> tuple[dict[str, Figure], dict[str, Any], tuple[str, ...]]:
        """All figures of the generated images that are there, with their floors; what the record adds; and notes."""
        floors = self.real.floors(shard, self.plan.options)
        with shard.timing("distance"):
            figures = self._distances(floors, novelty) | self._class_distances(episodes) | self._accuracy_figures()
            found, record = novelty.figures(self.fidelity.generated_features()[self._layer].cpu())
            figures |= found
        notes = tuple(f"{metric} of {self.name}: {text}" for metric, text in self.fidelity.notes().items())
        self.fidelity.reset()
        self.fidelity.cpu()
        return figures, record, notes

    def _distances(self, floors: Mapping[str, float], novelty: SplitNovelty) -> dict[str, Figure]:
        sizes, others = self.real.floor_sizes, novelty.baselines or {}
        return {
            name: Figure(
                float(value),
                floors.get(name),
                sizes if name in floors else None,
                copier=others.get(f"copier/{name}") if novelty.shots else None,
            )
            for name, value in self.fidelity.compute().items()
        }

    def _class_distances(self, episodes: Episodes) -> dict[str, Figure]:
        """FID of every class that is asked for."""
        if not self.classes:
            return {}
        found = self.fidelity.per_class(torch.from_numpy(episodes.labels), self.real.labels, self.classes)
        return {f"class/{self.images.class_names[c]}": Figure(found[c]["fid"]) for c in self.classes}

    def _accuracy_figures(self) -> dict[str, Figure]:
        """few_shot_accuracy among the most classes by that name, among fewer with their number in it."""
        figures: dict[str, Figure] = {}
        if self.accuracy is None:
            return figures
        for way, accuracy in self._accuracies(self.accuracy).items():
            name = "few_shot_accuracy" + ("" if way == max(self.ways) else f"_{way}")
            real = self._real_accuracy[way]
            copier = self._copier_accuracy.get(way)
            figures[name] = Figure(accuracy, real, (len(self.real.chosen),) * 2, 1 / way, copier)
            figures[f"{name}_real"] = Figure(real, chance=1 / way)
        return figures

    # -- likelihood --------------------------------------------------------------------------------------------------

    def _likelihood(self, model: Any, episodes: Episodes, shard: RankShard) -> LikelihoodRecord:
        """Means over images of the variational bound's parts; of the first targets, conditioned as in generation."""
        count = min(self.plan.vlb_images, len(episodes))
        steps = self.plan.vlb_steps or model.config.diffusion.timesteps
        parts: dict[str, tuple[int, ...]] = {
            "prior": (), "terms": (steps,), "xstart_mse": (steps,), "eps_mse": (steps,)
        }  # fmt: skip
        gathered = IndexedRows(parts).to(shard.device)
        bound = partial(model.bits_per_dim, steps=self.plan.vlb_steps, seed=self.plan.seed)
        for batch in shard.batches(count, f"Evaluation: variational bound, {self.name}"):
            index = torch.from_numpy(batch)
            conditions = conditions_of(model, self.images, episodes, batch)
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

    def _record(self, episodes: Episodes, shots: int | None, found: Mapping[str, Any]) -> SplitRecord:
        def per_class(labels: np.ndarray) -> dict[str, int]:
            counts = np.bincount(labels, minlength=self.images.num_classes)
            return dict(zip(self.images.class_names, counts.tolist(), strict=True))

        return SplitRecord(
            data_split=self.name,
            classes=self.images.class_names,
            num_images=len(episodes) if self.plan.metrics else None,
            num_real_images=len(self.real.chosen),
            generated_per_class=per_class(episodes.labels) if self.plan.metrics else {},
            real_per_class=per_class(self.images.labels[self.real.chosen]),
            images_sha256=self.real.pixels_sha256,
            real_images_sha256=hash_of(self.real.chosen),
            supports_sha256=None if shots is None else hash_of(episodes.targets, episodes.supports),
            **found,
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
