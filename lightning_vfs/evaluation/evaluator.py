"""An evaluation: a plan in, a record out."""

from __future__ import annotations

import math
import os
import warnings
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.data.glyphs import GlyphSets
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.evaluation.model import (
    AUTOCAST,
    OWN_PRECISION,
    check_model,
    model_record,
    shots_of,
    undisturbed,
)
from lightning_vfs.evaluation.plan import SPLITS, EvaluationPlan
from lightning_vfs.evaluation.real_images import RESIZE
from lightning_vfs.evaluation.record import (
    DataRecord,
    EnvironmentRecord,
    EvaluationRecord,
    FeaturesRecord,
    MetricsRecord,
    ModelRecord,
    SamplingRecord,
    versions,
)
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.evaluation.split import SplitEvaluation, check_class_names
from lightning_vfs.metrics import extractor_folder, glyph_cnn
from lightning_vfs.metrics.extractors import INCEPTION, ImageFeatures
from lightning_vfs.metrics.perceptual import IN_WORDS, PairwiseLPIPS
from lightning_vfs.metrics.training_images import TrainingReference
from lightning_vfs.training.device import memory_format
from lightning_vfs.training.nonfinite import why_not_finite
from lightning_vfs.training.ranks import gather_objects

if TYPE_CHECKING:
    from lightning_vfs.modules import VFSDDPM

ROUNDING = "(x + 1) * 127.5, rounded to nearest, half to even, cut to 0..255"

PIXEL_FIGURES = ("vlb", "lpips", "support_affinity", "copy_rate", "train_copy_rate", "diversity_pixels")
"""Figures that no extractor takes part in."""


def evaluate(
    model: VFSDDPM,
    data: SetDataModule,
    plan: EvaluationPlan = EvaluationPlan(),
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    precision: Literal["16-mixed", "bf16-mixed"] | None = None,
    show_progress: bool = False,
) -> EvaluationRecord:
    """Evaluate a model, as `FIDCallback` does in a trainer; restores the model's modes and the random state.

    Where torch.distributed is initialized, every rank calls this with the same model on a device of its own and gets
    the same figures, which do not depend on the number of ranks.

    Args:
        model: with the weights to evaluate.
        data: provides supports and real images.
        plan: what is generated and computed.
        checkpoint: the file that the model was loaded from, for the record.
        device: to which the model is moved; by default it stays where it is.
        precision: of mixed precision; by default the network runs in the type of its weights.
        show_progress: show progress bars.

    Raises:
        ConfigError, EvaluationError: an option that is not valid, or not for this model or data.
        SetSizeMismatchError: the data has sets of another size than the weights.
        VFSError: the checkpoint cannot be read.
    """
    if precision is not None and precision not in AUTOCAST:
        raise ConfigError(
            f"precision is {precision!r}; allowed: {', '.join(map(repr, AUTOCAST))}, or None for that of the weights."
        )
    if device is not None:
        model.use_device(torch.device(device))
        model.to(device)
    weight = next(model.parameters())
    shard = RankShard(plan.batch_size, weight.device, show_progress)
    if shard.world_size > 1:  # the others find the first one's cache
        if shard.rank == 0:
            data.prepare_data()
        gather_objects(None)
    evaluator, weights = Evaluator(plan, data), model_record(model, checkpoint)
    mixed = nullcontext() if precision is None else torch.autocast(weight.device.type, AUTOCAST[precision])
    with undisturbed(model), mixed:
        return evaluator.evaluate(model, shard, weights, precision or OWN_PRECISION[weight.dtype])


class Evaluator:
    """A plan and the data that it is carried out on, as often as asked for: features of real images are kept.

    Args:
        plan: what is generated and computed.
        data: what supports and real images are taken from.

    Raises:
        ConfigError: a class of `per_class` that no split has.
        EvaluationError: too few images or classes, or no weights for the extractor.
    """

    def __init__(self, plan: EvaluationPlan, data: SetDataModule) -> None:
        self.plan, self.data = plan, data
        self.features: ImageFeatures | None = None
        if plan.metrics:
            self.features = ImageFeatures(plan.feature_extractor, plan.metrics, plan.weights_path)
        training = TrainingReference(data.split("train"), plan.seed)
        lpips = PairwiseLPIPS() if plan.lpips else None
        self.splits = {
            name: SplitEvaluation(SPLITS[name], data.split(SPLITS[name]), self.features, plan, training, lpips)
            for name in plan.splits
        }
        if not isinstance(plan.per_class, bool):
            check_class_names(plan.per_class, list(self.splits.values()))
        self.ways, self.notes = self._possible_ways()
        if self.features is not None and self.features.name == glyph_cnn.NAME and not isinstance(data, GlyphSets):
            note = (
                f"{glyph_cnn.NAME} sees images as 16 x 16 in grey and knows only the built-in glyphs: of other images "
                "its figures say little."
            )
            warnings.warn(note, stacklevel=3)
            self.notes += (note,)
        if self.features is not None and self.features.card is not None:
            unseen = data.split("test").class_names if "out" in self.splits else ()
            for note in extractor_folder.remarks(self.features.card, unseen, data.channels):
                warnings.warn(note, stacklevel=3)
                self.notes += (note,)
        for evaluation in self.splits.values():
            evaluation.ways = self.ways

    def _possible_ways(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Numbers of classes that few_shot_accuracy chooses among in every split, and a note if the plan has others."""
        wanted, (enough, split) = self.plan.ways, min((each.num_choices, each.name) for each in self.splits.values())
        if not wanted or max(wanted) <= enough:
            return wanted, ()
        possible = tuple(sorted({min(way, enough) for way in wanted if enough >= 2}))
        instead = f"it chooses among {max(possible)}" if possible else "it is left out"
        note = (
            f"few_shot_accuracy among {max(wanted)} classes needs as many with 2 or more real images, but split "
            f"{split!r} has {enough}: {instead}."
        )
        warnings.warn(note, stacklevel=4)
        return possible, (note,)

    def check(self, model: Any) -> int | None:
        """Check everything against the model; returns the images in a support, None for a model without one.

        Raises:
            SetSizeMismatchError: the data has sets of another size than the weights.
            EvaluationError, ConfigError: an option that this model cannot satisfy.
        """
        check_model(model, self.data, self.plan.sampling)
        if self.plan.vlb_images and model.config.latent.autoencoder:
            raise EvaluationError(
                f"vlb_images is {self.plan.vlb_images}, but this model diffuses latents, whose variational bound says "
                "nothing about pixels: set it to 0."
            )
        shots = self._shots(model)
        for evaluation in self.splits.values():
            evaluation.episodes(shots)
        return shots

    def _shots(self, model: Any) -> int | None:
        encoder, shots = model.config.encoder, self.plan.shots
        if encoder.condition == "support":
            most = shots_of(model, self.data)
            if shots is None and self.plan.support_pool is not None:
                raise EvaluationError(
                    f"support_pool is {self.plan.support_pool:g}, and the number of images set aside depends on shots, "
                    f"which is null: set shots, to at most {most}."
                )
            if shots is not None and shots > most:
                raise EvaluationError(
                    f"shots is {shots}, but this model takes supports of 1 to {most}: set it to at most {most}, or to "
                    f"null for {most}."
                )
            return shots or most
        if shots is not None:
            raise EvaluationError(
                f"shots is {shots}, but this model takes no support (encoder.architecture is "
                f"{encoder.architecture!r}): set it to null."
            )
        if encoder.condition == "label" and "out" in self.splits:
            raise EvaluationError(
                "splits has 'out', classes never trained on, but a class-conditional model has contexts only for its "
                "training classes: set splits to ['in']."
            )
        return None

    def evaluate(self, model: Any, shard: RankShard, weights: ModelRecord, precision: str) -> EvaluationRecord:
        """Generate images and compute all figures; the model is in evaluation mode. Collective.

        Args:
            model: its `generate` makes the images; it is asked for `bits_per_dim` where the plan has `vlb_images`.
            shard: what this rank does of it.
            weights: whose they are, for the record.
            precision: that the network runs in, for the record.

        Returns:
            The record, with the same figures on all ranks.

        Raises:
            SetSizeMismatchError, EvaluationError, ConfigError: see `check`.
        """
        shots = self.check(model)
        results = {name: evaluation.evaluate(model, shots, shard) for name, evaluation in self.splits.items()}
        figures = {
            self._figure_name(name, split): figure
            for split, result in results.items()
            for name, figure in result.figures.items()
        }
        if shard.rank == 0 and any(math.isnan(figure.value) for figure in figures.values()):
            warnings.warn(
                "The model generated images that are not finite, so figures are NaN; " + why_not_finite(model) + ".",
                stacklevel=3,
            )
        record = EvaluationRecord(
            figures=figures,
            model=weights,
            data=DataRecord(type(self.data).__name__, self.data.image_size, self.data.channels),
            splits={name: result.record for name, result in results.items()},
            sampling=self._sampling_record(model, shots, precision),
            features=self._features_record(),
            metrics=_metrics_record(self.plan, self.ways, shots),
            likelihood={name: result.likelihood for name, result in results.items() if result.likelihood is not None},
            environment=_environment_record(shard),
            notes=self.notes + tuple(note for result in results.values() for note in result.notes),
        )
        return replace(record, notes=record.verdicts + record.notes)

    def _figure_name(self, figure: str, split: str) -> str:
        """The name that a split's figure is recorded and logged under."""
        if figure in PIXEL_FIGURES:
            return f"{figure}/{split}"
        name = self.plan.feature_extractor if self.features is None else self.features.name
        extractor = "" if name == INCEPTION else f"[{name}]"
        if figure.startswith("class/"):
            return f"fid{extractor}/{figure}"
        if figure.endswith("_real"):
            return f"{figure.removesuffix('_real')}{extractor}/{split}_real"
        return f"{figure}{extractor}/{split}"

    def _sampling_record(self, model: Any, shots: int | None, precision: str) -> SamplingRecord:
        sampling = self.plan.sampling
        return SamplingRecord(
            sampler=sampling.sampler,
            steps=sampling.steps,
            eta=sampling.eta if sampling.sampler == "ddim" else None,
            guidance=sampling.guidance_scale if sampling.is_guided else None,
            guidance_interval=sampling.guidance_interval if sampling.is_guided else None,
            shots=shots,
            held_out=None if shots is None else model.config.sets.held_out,
            precision=precision,
            float32_matmul_precision=torch.get_float32_matmul_precision(),
            memory_format=memory_format(model),
            seed=self.plan.seed,
            support_pool=self.plan.support_pool,
            images_per_class=self.plan.images_per_class,
        )

    def _features_record(self) -> FeaturesRecord:
        if self.features is None:
            return FeaturesRecord(
                extractor=None, layers={}, weights_sha256=None, dtype=None, resize=None, rounding=None
            )
        return FeaturesRecord(
            extractor=self.features.name,
            layers=self.features.layers,
            weights_sha256=self.features.weights_sha256,
            dtype=self.features.dtype,
            resize=RESIZE,
            rounding=ROUNDING,
        )


def _metrics_record(plan: EvaluationPlan, ways: tuple[int, ...], shots: int | None) -> MetricsRecord:
    options, kid, isc = plan.options, "kid" in plan.metrics, "isc" in plan.metrics
    gamma = "1 / d" if options.kid_kernel_poly_gamma is None else options.kid_kernel_poly_gamma
    kernel = f"({gamma} x.y + {options.kid_kernel_poly_coef0}) ^ {options.kid_kernel_poly_degree}"
    order = f"shuffled by seed {options.rng_seed}" if options.samples_shuffle else "as generated"
    return MetricsRecord(
        kid_subsets=options.kid_subsets if kid else None,
        kid_subset_size=options.kid_subset_size if kid else None,
        kid_seed=options.rng_seed if kid else None,
        isc_splits=options.isc_splits if isc else None,
        prc_neighborhood=options.prc_neighborhood if "prc" in plan.metrics else None,
        few_shot_way=max(ways, default=None),
        kid_kernel=kernel if kid else None,
        isc_order=order if isc else None,
        diversity_images=plan.diversity_images if plan.metrics and shots and plan.diversity_images else None,
        lpips=IN_WORDS if plan.lpips else None,
    )


def _environment_record(shard: RankShard) -> EnvironmentRecord:
    device = shard.device
    return EnvironmentRecord(
        world_size=shard.world_size,
        batch_size=shard.batch_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        generation_seconds=round(shard.seconds["generation"], 3),
        features_seconds=round(shard.seconds["features"], 3),
        distance_seconds=round(shard.seconds["distance"], 3),
        versions=versions(),
    )
