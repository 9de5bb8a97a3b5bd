"""The evaluation of one split: images generated for its classes, and every figure of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import hash_of
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.data.pictures import to_uint8
from lightning_vfs.evaluation.diversity import SplitDiversity
from lightning_vfs.evaluation.episodes import SplitEpisodes
from lightning_vfs.evaluation.groups import groups_of
from lightning_vfs.evaluation.judging import EpisodeJudge
from lightning_vfs.evaluation.likelihood import likelihood_of
from lightning_vfs.evaluation.model import conditions_of
from lightning_vfs.evaluation.novelty import SplitNovelty
from lightning_vfs.evaluation.plan import EvaluationPlan
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.evaluation.record import Figure, LikelihoodRecord, SplitRecord
from lightning_vfs.evaluation.sampled_images import ImageSample
from lightning_vfs.evaluation.saved_images import SavedImages
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.evaluation.variety import SplitVariety
from lightning_vfs.metrics import FewShotAccuracy, FidelityMetric, ImageFeatures
from lightning_vfs.metrics.fidelity import check_classes, check_enough
from lightning_vfs.metrics.jackknife import Groups
from lightning_vfs.metrics.perceptual import PairwiseLPIPS
from lightning_vfs.metrics.training_images import TrainingReference
from lightning_vfs.training.ranks import on_first_rank


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
        num_images: images to generate.
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
        self.name, self.images, self.plan = name, images, plan
        self._episodes = SplitEpisodes(name, images, plan)
        self.num_images, among = self._episodes.num_images, self._episodes.among
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
        self._training, self._novelty = training, dict[int | None, SplitNovelty]()
        self._diversity: SplitDiversity | None = None
        self._saved = SavedImages(plan.save_images, name)

    def make_room(self, first_rank: bool) -> None:
        """Prepare the folders of images, if the plan saves them; where they cannot be written, a warning says so.

        Raises:
            ConfigError: they hold images of those names that no evaluation has written; on every rank.
        """
        self._saved.make_room({"real": len(self.real.chosen), "generated": self.num_images}, first_rank)

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
        episodes = self._episodes.draw(shots)
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
        groups, group_notes = groups_of(self.images.class_names, episodes, self.real)
        figures: dict[str, Figure] = {}
        found: dict[str, Any] = {}
        notes = tuple(f"{self.name}: {note}" for note in group_notes)
        if self.plan.metrics:
            self.make_room(shard.rank == 0)
            self._take_real_images(groups, shard)
            novelty = self._take_supports(episodes, shots, groups, shard)
            self._generate_images(model, episodes, novelty, shard)
            figures, found, more = self._compare(episodes, novelty, shard)
            notes += more
            found["sampled_images"] = self._sampled.gathered()
            if self.variety is not None:
                with shard.timing("features"):
                    figures |= self.variety.figures(episodes, shots, groups, shard)
        likelihood = None
        if self.plan.vlb_images:
            conditions = partial(conditions_of, model, self.images, episodes)
            likelihood, figures["vlb"] = likelihood_of(
                model, conditions, self.images, episodes, self.plan, groups, shard, self.name
            )
        record = self._record(episodes, shots, {"groups": groups.number} | found)
        return SplitResult(figures, record, self.real.notes + notes, likelihood)

    # -- real images -------------------------------------------------------------------------------------------------

    def _take_real_images(self, groups: Groups, shard: RankShard) -> None:
        """Their features go into the metrics, and their own accuracy is found, once."""
        rows = self.real.features(shard)
        mine = np.arange(shard.rank, len(self.real.chosen), shard.world_size)
        self.fidelity.reset()
        self.fidelity.to(shard.device)
        self.fidelity.update({layer: values[mine] for layer, values in rows.items()}, True, torch.from_numpy(mine))
        if self.ways and self.accuracy is None:
            self.accuracy = FewShotAccuracy(
                rows[self._layer], self.real.labels, self.ways, self.plan.seed, groups.classes
            )
            self.accuracy.to(shard.device)
            for batch in shard.batches(len(self.real.chosen), f"Evaluation: accuracy of real images, {self.name}"):
                index = torch.from_numpy(batch)
                self.accuracy.update(rows[self._layer][index], self.real.labels[index], index, leave_one_out=True)
            self._real_accuracy = self._accuracies(self.accuracy)
        for i in mine.tolist() if self._saved.writable else ():
            self._saved.save("real", i, self.images.uint8(self.real.chosen[i]))

    def _take_supports(self, episodes: Episodes, shots: int | None, groups: Groups, shard: RankShard) -> SplitNovelty:
        """What generated images are to be new to, and the figures of copies of it, are found once for each `shots`."""
        if shots not in self._novelty:
            trained_on, seed = self.name == "train", self.plan.seed
            judge = EpisodeJudge(
                self.images, episodes, shots, self.real, self._layer, self._training, trained_on, groups
            )
            self._novelty = {shots: SplitNovelty(judge, self.plan.options, seed)}
            accuracies = partial(self._accuracies_of, torch.from_numpy(episodes.labels))
            self._novelty[shots].take_real_images(shard, accuracies, {"ways": list(self.ways)})
            several = self.plan.diversity_images and shots is not None
            self._diversity = SplitDiversity(judge, self.plan.diversity_images, shard) if several else None
        return self._novelty[shots]

    def _accuracies_of(self, labels: Tensor, features: Tensor) -> dict[str, float]:
        """few_shot_accuracy of an image of each episode, by name."""
        if self.accuracy is None:
            return {}
        _, hits = self.accuracy.judged(features, labels, torch.arange(len(labels)))
        shares = hits[:, :, 0].double().mean(dim=0).tolist()
        return {self._accuracy_name(way): accuracy for way, accuracy in zip(self.ways, shares, strict=True)}

    def _accuracy_name(self, way: int) -> str:
        """few_shot_accuracy among the most classes, among fewer with their number in it."""
        return "few_shot_accuracy" + ("" if way == max(self.ways) else f"_{way}")

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
        """One for each episode, and more of some supports; their features go into the metrics."""
        novelty.reset(shard)
        if self.variety is not None:
            self.variety.reset(shard)
        if self.accuracy is not None:
            self.accuracy.reset()
        if self._diversity is not None:
            self._diversity.reset(shard)
        self._sampled = ImageSample(len(episodes))
        for batch in shard.batches(len(episodes), f"Evaluation: generating, {self.name}"):
            index = torch.from_numpy(batch)
            pixels, features, broken = self._generated(model, episodes, batch, index, shard)
            with shard.timing("features"):
                self.fidelity.update(features, real=False, index=index)
                if self.accuracy is not None:
                    self.accuracy.update(features[self._layer], torch.from_numpy(episodes.labels[batch]), index)
            with shard.timing("distance"):
                novelty.update(pixels, broken, index)
                if self._diversity is not None:
                    self._diversity.add_episodes(features[self._layer], pixels, batch)
                if self.variety is not None:
                    self.variety.update(pixels, broken, index)
            self._sampled.add(pixels, batch)
            for i, image in zip(batch.tolist(), pixels.cpu(), strict=True) if self._saved.writable else ():
                self._saved.save("generated", i, image)
        if self._diversity is not None:
            for batch in shard.batches(self._diversity.more, f"Evaluation: generating for diversity, {self.name}"):
                index = torch.from_numpy(batch) + len(episodes)
                rows = self._diversity.episode_of(batch)
                pixels, features, _ = self._generated(model, episodes, rows, index, shard)
                self._diversity.add_more(features[self._layer], pixels, batch)

    def _generated(
        self, model: Any, episodes: Episodes, rows: np.ndarray, index: Tensor, shard: RankShard
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Images of some episodes (n,) with the noise of `index` (n,): uint8, their features, which are not finite."""
        conditions = conditions_of(model, self.images, episodes, rows)
        with shard.timing("generation"):
            images = model.generate(index=index, seed=self.plan.seed, sampling=self.plan.sampling, **conditions)
        with shard.timing("features"):
            pixels = to_uint8(images)
            features = self.features(pixels)
            broken = ~images.flatten(1).isfinite().all(dim=1)
            for values in features.values():
                values[broken] = torch.nan
        return pixels, features, broken

    # -- figures -----------------------------------------------------------------------------------------------------

    def _compare(
        self, episodes: Episodes, novelty: SplitNovelty, shard: RankShard
    ) -> tuple[dict[str, Figure], dict[str, Any], tuple[str, ...]]:
        """All figures of the generated images that are there, with their landmarks; what the record adds; and notes."""
        floors = self.real.floors(shard, self.plan.options)
        with shard.timing("distance"):
            features = {layer: rows.cpu() for layer, rows in self.fidelity.generated_features().items()}
            figures = self._distances(floors, features, novelty) | self._class_distances(episodes)
            figures |= self._accuracy_figures(novelty)
            found, record = novelty.figures(features[self._layer])
            figures |= found
            if self._diversity is not None:
                figures |= self._diversity.figures()
        notes = tuple(f"{metric} of {self.name}: {text}" for metric, text in self.fidelity.notes().items())
        self.fidelity.reset()
        self.fidelity.cpu()
        return figures, record, notes

    def _distances(
        self, floors: Mapping[str, float], features: Mapping[str, Tensor], novelty: SplitNovelty
    ) -> dict[str, Figure]:
        values = {name: float(value) for name, value in self.fidelity.compute().items()}
        more = on_first_rank(lambda: novelty.replicates(features, self.plan.fid_replicates))
        values |= {name: columns[0] for name, columns in more.items() if name not in values}
        sizes = self.real.floor_sizes
        found = {}
        for name, value in values.items():
            floor = floors.get(name, (novelty.baselines or {}).get(f"real/{name}"))
            of = sizes if name in floors else None if floor is None else (self.num_images,) * 2
            figure = novelty.beside_landmarks(name, Figure(value, floor, of))
            found[name] = figure.with_replicates(more[name][1:]) if name in more else figure
        return found

    def _class_distances(self, episodes: Episodes) -> dict[str, Figure]:
        """FID of every class that is asked for."""
        if not self.classes:
            return {}
        found = self.fidelity.per_class(torch.from_numpy(episodes.labels), self.real.labels, self.classes)
        return {f"class/{self.images.class_names[c]}": Figure(found[c]["fid"]) for c in self.classes}

    def _accuracy_figures(self, novelty: SplitNovelty) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        if self.accuracy is None:
            return figures
        replicates = self.accuracy.replicates(novelty.judge.groups.generated)
        for (way, accuracy), column in zip(self._accuracies(self.accuracy).items(), replicates, strict=True):
            name, real = self._accuracy_name(way), self._real_accuracy[way]
            figure = Figure(accuracy, real, (len(self.real.chosen),) * 2, 1 / way).with_replicates(column)
            figures[name] = novelty.beside_landmarks(name, figure)
            figures[f"{name}_real"] = Figure(real, chance=1 / way)
        return figures

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
