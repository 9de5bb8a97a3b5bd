"""The record of an evaluation: its figures, and everything that they depend on."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Annotated, Literal, NamedTuple

from lightning_vfs.evaluation.codec import JSONRecord
from lightning_vfs.evaluation.intervals import standard_error
from lightning_vfs.version import __version__

FILE_NAME = "fid.json"
"""Name of a record that is written next to checkpoints."""


# -- what a field is to a comparison: `compare` and the tests read it off the field's type -----------------------------


class Reason(NamedTuple):
    """A field that changes the figures of one and the same model: records that differ in it are not comparable.

    Attributes:
        effect: what another value does to the figures.
        option: only of some metrics or models: its value is None, and not compared, if it does not apply.
    """

    effect: str
    option: bool = False


class Remark(NamedTuple):
    """A field whose difference is reported, but does not prevent a comparison."""

    effect: str


class Compared(NamedTuple):
    """A field that is compared."""


# -- the schema -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure and its floor.

    Args:
        value: NaN where generated images were not finite.
        floor: the same metric between two disjoint sets of real images; None if there is none.
        floor_images: numbers of images in these two sets, the figure's own unless there are too few real images.
        chance: what guessing gives, of an accuracy.
        copier: the same figure of the first image of every support; None if there is none.
        standard_error: of the figure, clustered by class, by the jackknife of its replicates; None if it is not known.
        mean_of_support: the same figure of the mean of every support.
        jittered_mean: the same of that mean, rotated, scaled and shifted (`evaluation.landmarks`).
        replicates: the figure without each group of classes in turn (`evaluation.intervals`); None if there are none.
    """

    value: Annotated[float, Compared()]
    floor: Annotated[float | None, Compared()] = None
    floor_images: Annotated[tuple[int, int] | None, Compared()] = None
    chance: Annotated[float | None, Compared()] = None
    copier: Annotated[float | None, Compared()] = None
    standard_error: Annotated[float | None, Compared()] = None
    mean_of_support: Annotated[float | None, Compared()] = None
    jittered_mean: Annotated[float | None, Compared()] = None
    replicates: Annotated[tuple[float, ...] | None, Compared()] = None

    def with_replicates(self, replicates: Sequence[float] | None) -> Figure:
        """The figure with these, and the standard error that follows; without them, where one is not finite."""
        if replicates is None or math.isnan(error := standard_error(replicates)):
            return self
        return replace(self, standard_error=error, replicates=tuple(replicates))

    def __str__(self) -> str:
        """Such as `15.1 ± 0.9 (floor 8.5, copier 3.6)`."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        beside = {"floor": self.floor, "copier": self.copier}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in beside.items() if value is not None)
        return f"{self.value:.4g}{error}" + (f" ({shown})" if shown else "")


@dataclass(frozen=True)
class ModelRecord:
    """The model that was evaluated.

    Args:
        checkpoint: its file; None for a model that is evaluated while it is trained.
        checkpoint_sha256: of that file.
        global_step: optimizer steps that it was trained for; None where it is not known.
        weights: the averaged ones (EMA), or those that the optimizer steps.
        averaging_decay: of the average, if it is known.
        averaging_warmup: whether the decay warmed up, if it is known.
        autoencoder_sha256: of the weights of the autoencoder in whose latents it diffuses; None in pixels.
        run_sha256: of the fingerprint of the run that trained it; None where that is not known.
        recipe_sha256: of the same without its seed: runs of one method that differ in their seeds share it.
    """

    checkpoint: Annotated[str | None, Remark("this is what is compared")]
    checkpoint_sha256: Annotated[str | None, Remark("this is what is compared")]
    global_step: Annotated[int | None, Remark("this is what is compared")]
    weights: Annotated[Literal["averaged", "raw"], Reason("averaged and raw weights of one run give different figures")]
    averaging_decay: Annotated[float | None, Remark("this is a choice of training")]
    averaging_warmup: Annotated[bool | None, Remark("this is a choice of training")]
    autoencoder_sha256: Annotated[str | None, Remark("this is what is compared")]
    run_sha256: Annotated[str | None, Remark("this is what is compared")] = None
    recipe_sha256: Annotated[str | None, Remark("this is what is compared")] = None


@dataclass(frozen=True)
class DataRecord:
    """The data.

    Args:
        dataset: its name, for people; the images themselves are held by `SplitRecord.images_sha256`.
        image_size: height and width of an image in pixels.
        channels: channels of an image.
    """

    dataset: Annotated[str, Reason("figures of different data")]
    image_size: Annotated[int, Reason("features see images of another size")]
    channels: Annotated[int, Reason("features see grey instead of colour")]


@dataclass(frozen=True)
class SampledImage:
    """One of the generated images, by which `verify` finds out whether a checkpoint makes the same.

    Args:
        sha256: of its pixels, uint8 (c, h, w).
        thumbnail: their means on a grid of 8 x 8, rounded to uint8 (c, 8, 8), in base64.
    """

    sha256: str
    thumbnail: str


@dataclass(frozen=True)
class SplitRecord:
    """What was generated for a split, and compared with what.

    Args:
        data_split: the split of the data module.
        classes: names of its classes, in order.
        num_images: images generated; None where the variational bound alone is computed.
        num_real_images: real images that they are compared with.
        generated_per_class: images generated for each class.
        real_per_class: real images of each class.
        images_sha256: pixels of all images of the split, in order (`feature_cache.pixels_sha256`).
        real_images_sha256: list of the real images, as `hash_of` their indices.
        supports_sha256: list of the held-out images and of their supports, as `hash_of` their indices; None for a model
            that takes no support.
        verdict: what the images copy, in words; None where nothing is known to be copied.
        episodes_without_reference: episodes without a unique image of their class outside the support, which
            support_affinity, copy_rate and novel_accuracy leave out.
        affinity_real: support_affinity of real images.
        affinity_mean_of_support: that of the mean of the support's images.
        hits_all: hits of few_shot_accuracy_all, a 0 or 1 for each episode, `-` for one that takes no part.
        affinity_hits: likewise, whether the nearest image is one of the support.
        copies: likewise, whether copy_rate counts a copy.
        groups: groups of classes that replicates leave out; of episodes, where there are at most 3 classes.
        sampled_images: up to 32 of the generated images, evenly spread, by their global index; None where no image is
            generated.
    """

    data_split: Annotated[str, Reason("other classes are evaluated")]
    classes: Annotated[tuple[str, ...], Reason("different images are generated, and compared with different real ones")]
    num_images: Annotated[int | None, Reason("FID is biased by the number of images", option=True)]
    num_real_images: Annotated[int, Reason("FID is biased by the number of images")]
    generated_per_class: Annotated[dict[str, int], Reason("classes have different weights in the figures")]
    real_per_class: Annotated[dict[str, int], Reason("classes have different weights in the figures")]
    images_sha256: Annotated[str, Reason("the images of the split are not the same")]
    real_images_sha256: Annotated[str, Reason("the figures compare with different real images")]
    supports_sha256: Annotated[str | None, Reason("images are generated from other supports", option=True)]
    verdict: Annotated[str | None, Compared()] = None
    episodes_without_reference: Annotated[int | None, Compared()] = None
    affinity_real: Annotated[float | None, Compared()] = None
    affinity_mean_of_support: Annotated[float | None, Compared()] = None
    hits_all: Annotated[str | None, Compared()] = None
    affinity_hits: Annotated[str | None, Compared()] = None
    copies: Annotated[str | None, Compared()] = None
    groups: Annotated[int | None, Compared()] = None
    sampled_images: Annotated[dict[str, SampledImage] | None, Compared()] = None


@dataclass(frozen=True)
class SamplingRecord:
    """How images were generated.

    Args:
        sampler: `ddim`, `ddpm`, `dpmpp_2m`, `euler` or `heun`.
        steps: timesteps that it took.
        eta: of DDIM; None for a sampler without.
        guidance: scale of classifier-free guidance; None without guidance.
        guidance_interval: first timestep that is guided, and the first above it that no longer is; None for all.
        shots: images in a support; None for a model that takes none.
        held_out: what leave-one-out does with the image that is generated (`SetConfig.held_out`); None likewise.
        precision: the trainer's, in which the network ran.
        float32_matmul_precision: of its matrix products in float32, as torch names it: `high` is TF32 on CUDA.
        memory_format: `channels_last` or `contiguous`, of the weights of UNets; None for a model without one.
        seed: draws supports and noise.
        support_pool: images of each class that supports are drawn from and that the real images leave out, as a share
            below 1 or a number; None where supports are any images.
        images_per_class: images generated for each class, where the protocol says that.
    """

    sampler: Annotated[str, Reason("another sampler makes other images of the same model")]
    steps: Annotated[int, Reason("more steps make other, mostly better, images of the same model")]
    eta: Annotated[float | None, Reason("another eta makes other images of the same model")]
    guidance: Annotated[float | None, Reason("guidance trades variety for likeness")]
    guidance_interval: Annotated[tuple[int, int] | None, Reason("guidance acts at other timesteps")]
    shots: Annotated[int | None, Reason("more images of a class tell more about it", option=True)]
    held_out: Annotated[str | None, Reason("the model sees something else of the class", option=True)]
    precision: Annotated[str, Reason("the same model makes slightly other images")]
    float32_matmul_precision: Annotated[str | None, Remark("images may differ in their last digits")]
    memory_format: Annotated[str | None, Remark("images may differ in their last digits")]
    seed: Annotated[int, Remark("other noise, and other supports; figures vary with it by chance")]
    support_pool: Annotated[
        float | None, Reason("the real images are, or are not, those that images are generated from")
    ] = None
    images_per_class: Annotated[int | None, Reason("classes have different weights in the figures")] = None


@dataclass(frozen=True)
class FeaturesRecord:
    """What turned images into features; without metrics, nothing did, and all fields but `layers` are None.

    Args:
        extractor: name in torch-fidelity's registry.
        layers: the layer that each metric takes, by metric.
        weights_sha256: of the extractor's weights.
        dtype: that it computes in.
        resize: rule by which images get the extractor's size.
        rounding: rule by which generated images become uint8.
    """

    extractor: Annotated[str | None, Reason("distances in different feature spaces", option=True)]
    layers: Annotated[dict[str, str], Reason("distances in different feature spaces")]
    weights_sha256: Annotated[str | None, Reason("distances in different feature spaces", option=True)]
    dtype: Annotated[str | None, Reason("features are rounded differently", option=True)]
    resize: Annotated[str | None, Reason("features see images resized differently", option=True)]
    rounding: Annotated[str | None, Reason("features see generated images rounded differently", option=True)]


@dataclass(frozen=True)
class MetricsRecord:
    """Options of the metrics; None for those of a metric that was not computed.

    Args:
        kid_subsets: subsets that KID is the mean of.
        kid_subset_size: images in each of them.
        kid_seed: draws them.
        kid_kernel: its polynomial, such as `(x.y / d + 1) ^ 3`.
        isc_splits: parts that the Inception score is the mean of.
        isc_order: order in which images are split, such as `shuffled by seed 2020`.
        prc_neighborhood: nearest neighbours of precision and recall.
        few_shot_way: classes that the figure named just few_shot_accuracy chooses among; other figures name theirs.
        diversity_images: images of a support that diversity compares.
        lpips: the network, and the size and number of images that it compares.
    """

    kid_subsets: Annotated[int | None, Reason("KID is the mean of another number of subsets", option=True)]
    kid_subset_size: Annotated[int | None, Reason("KID is that of subsets of another size", option=True)]
    kid_seed: Annotated[int | None, Reason("KID is that of other subsets", option=True)]
    isc_splits: Annotated[int | None, Reason("the Inception score is biased by the number of splits", option=True)]
    prc_neighborhood: Annotated[
        int | None, Reason("precision and recall grow with the number of neighbours", option=True)
    ]
    few_shot_way: Annotated[
        int | None, Reason("few_shot_accuracy falls with the number of classes to choose among", option=True)
    ]
    kid_kernel: Annotated[str | None, Reason("KID is that of another kernel", option=True)]
    isc_order: Annotated[str | None, Reason("the Inception score is the mean of other splits", option=True)]
    diversity_images: Annotated[int | None, Remark("diversity varies less with more images")] = None
    lpips: Annotated[str | None, Reason("LPIPS is that of another network or of other pairs", option=True)] = None


@dataclass(frozen=True)
class LikelihoodRecord:
    """The variational bound of a split's real images, in bits per dimension; means over images.

    Args:
        num_images: images that it is the mean of.
        steps: timesteps of the process.
        prior: KL(q(x_T | x_0) || N(0, I)).
        terms: of every step, from the decoder's on; with `prior` they add up to the figure.
        xstart_mse: mean squared error of the predicted x_0 at every step.
        eps_mse: mean squared error of the noise at every step.
    """

    num_images: Annotated[int, Reason("the bound is that of other images")]
    steps: Annotated[int, Reason("the bound is that of a process of other steps")]
    prior: Annotated[float, Compared()]
    terms: Annotated[tuple[float, ...], Compared()]
    xstart_mse: Annotated[tuple[float, ...], Compared()]
    eps_mse: Annotated[tuple[float, ...], Compared()]


@dataclass(frozen=True)
class Versions:
    """Versions of what computed the figures; `versions` gives those that are installed."""

    lightning_vfs: Annotated[str, Remark("fields above say what it changed")]
    torch_fidelity: Annotated[str, Reason("features and distances are torch-fidelity's")]
    torch: Annotated[str, Remark("figures may differ in their last digits")]
    torchvision: Annotated[str, Remark("figures may differ in their last digits")]
    numpy: Annotated[str, Remark("figures may differ in their last digits")]
    python: Annotated[str, Remark("figures do not depend on it")]


@dataclass(frozen=True)
class EnvironmentRecord:
    """Where and how fast the evaluation ran.

    Args:
        world_size: ranks.
        batch_size: images generated at a time on each.
        device: name of one rank's device.
        generation_seconds: time taken to generate images; likewise for features, and for distances and their floors.
        versions: of the packages.
    """

    world_size: Annotated[int, Remark("figures do not depend on it")]
    batch_size: Annotated[int, Remark("figures do not depend on it")]
    device: Annotated[str, Remark("figures may differ in their last digits")]
    generation_seconds: Annotated[float, Remark("time taken")]
    features_seconds: Annotated[float, Remark("time taken")]
    distance_seconds: Annotated[float, Remark("time taken")]
    versions: Versions


@dataclass(frozen=True)
class EvaluationRecord(JSONRecord):
    """One evaluation: its figures, and everything that they depend on.

    Args:
        figures: by the names that they are logged under, such as `fid/out`.
        splits: by the names that they are logged under, such as `out`.
        likelihood: of the splits whose variational bound was computed.
        notes: what else a reader of the figures must know.
    """

    # To be raised with every change of a field; and the fields that came with each schema.
    SCHEMA = 5
    SINCE = {  # noqa: RUF012 (no annotation: hints are fields)
        2: ("model.autoencoder_sha256", "sampling.guidance_interval"),
        3: ("model.averaging_warmup", "sampling.float32_matmul_precision", "sampling.memory_format"),
        4: (
            "figures.*.copier",
            "figures.*.standard_error",
            "splits.*.verdict",
            "splits.*.episodes_without_reference",
            "splits.*.affinity_real",
            "splits.*.affinity_mean_of_support",
            "splits.*.hits_all",
            "splits.*.affinity_hits",
            "splits.*.copies",
        ),
        5: ("model.run_sha256", "model.recipe_sha256"),
    }
    # Fields that records of the present schema may lack, as versions before a release wrote them.
    OPTIONAL = (
        "figures.*.mean_of_support",
        "figures.*.jittered_mean",
        "figures.*.replicates",
        "splits.*.groups",
        "splits.*.sampled_images",
        "metrics.diversity_images",
        "metrics.lpips",
        "sampling.support_pool",
        "sampling.images_per_class",
    )

    figures: dict[str, Figure]
    model: ModelRecord
    data: DataRecord
    splits: dict[str, SplitRecord]
    sampling: SamplingRecord
    features: FeaturesRecord
    metrics: MetricsRecord
    likelihood: dict[str, LikelihoodRecord]
    environment: EnvironmentRecord
    notes: Annotated[tuple[str, ...], Remark("to be read with the figures")]

    def in_words(self) -> list[str]:
        """The figures but for standard deviations, such as `fid/out 15.1 ± 0.9 (floor 8.5, copier 3.6)`."""
        return [f"{name} {figure}" for name, figure in self.figures.items() if "_std" not in name]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What the model copies, a line for each split where it does."""
        return tuple(
            f"{split}: {record.verdict}: its fid, precision and accuracy say nothing"
            for split, record in self.splits.items()
            if record.verdict
        )


def versions() -> Versions:
    """What is installed; imports none of it."""
    packages = {f.name: version(f.name.replace("_", "-")) for f in fields(Versions) if "torch" in f.name}
    return Versions(lightning_vfs=__version__, python=platform.python_version(), numpy=version("numpy"), **packages)
