"""Figures of fidelity between generated and real images, as torch-fidelity's command gives them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.metrics.extractors import ImageFeatures, check_metrics
from lightning_vfs.metrics.frechet import frechet_distance, is_low_rank
from lightning_vfs.metrics.indexed import IndexedMetric

FIGURES: dict[str, tuple[str, ...]] = {
    "fid": ("fid",),
    "kid": ("kid", "kid_std"),
    "isc": ("isc", "isc_std"),
    "prc": ("precision", "recall"),
}
"""Names of each metric's figures."""


@dataclass(frozen=True)
class FidelityOptions:
    """Options of the metrics, by torch-fidelity's names and with its defaults: `asdict` of it goes to its functions.

    Args:
        kid_subsets: subsets that KID is the mean of.
        kid_subset_size: images in a subset, at least 2.
        kid_kernel_poly_degree: degree of KID's kernel, (gamma x.y + coef0) ^ degree.
        kid_kernel_poly_gamma: its gamma; None is 1 / d.
        kid_kernel_poly_coef0: its coef0.
        isc_splits: parts that the Inception score is the mean of.
        samples_shuffle: whether images are shuffled before they are split.
        prc_neighborhood: neighbours that the ball around an image reaches to.
        prc_batch_size: images in one matrix of distances.
        rng_seed: draws KID's subsets and shuffles the Inception score's images, from 0 to 2^32 - 1.

    Raises:
        ConfigError: an option is out of range.
    """

    kid_subsets: int = 100
    kid_subset_size: int = 1000
    kid_kernel_poly_degree: int = 3
    kid_kernel_poly_gamma: float | None = None
    kid_kernel_poly_coef0: float = 1.0
    isc_splits: int = 10
    samples_shuffle: bool = True
    prc_neighborhood: int = 3
    prc_batch_size: int = 10000
    rng_seed: int = 2020

    def __post_init__(self) -> None:
        least = {"kid_subsets": 1, "kid_subset_size": 2, "kid_kernel_poly_degree": 1, "isc_splits": 1}
        least |= {"prc_neighborhood": 1, "prc_batch_size": 1, "rng_seed": 0}
        for name, minimum in least.items():
            check_whole_number(name, getattr(self, name), minimum)
        if self.rng_seed >= 2**32:
            raise ConfigError(f"rng_seed is {self.rng_seed}; it must be below 2^32, which NumPy's generator takes.")


PRC_DISTANCES = 10**8
"""Distances between images that precision and recall hold at a time, in float32; beyond 10,000 images in parts."""


class FidelityMetric(IndexedMetric):
    """FID, KID, Inception score, precision and recall of generated images, from one pass of an extractor.

    The metrics are those that the extractor was made for, `features.layers`. Figures equal those of torch-fidelity's
    command with this extractor named, on the same images in the order of their index, and depend neither on the order
    and size of batches nor on the number of ranks: see `IndexedMetric`.

    Args:
        features: the extractor.
        reset_real: whether `reset` also forgets the real images, or only the generated ones.
        options: of the metrics.
    """

    higher_is_better = None

    def __init__(
        self, features: ImageFeatures, reset_real: bool = True, options: FidelityOptions = FidelityOptions()
    ) -> None:
        super().__init__()
        self.features = features
        self.reset_real = reset_real
        self.options = options
        self._notes: dict[str, str] = {}
        for kind in ("generated", "real"):
            for layer, dim in features.dims.items():
                self.add_rows(f"{kind}_layer_{layer}", (dim,), torch.float32)

    def update(self, images: Tensor | Mapping[str, Tensor], real: bool, index: Tensor) -> None:
        """Add images.

        Args:
            images: uint8 (n, c, h, w), c = 1 or 3, or their features as `self.features(images)` gives them.
            real: whether they are real or generated.
            index: global sample index of each (n,), counted apart for real and generated images.
        """
        features = images if isinstance(images, Mapping) else self.features(images)
        for layer, rows in features.items():
            self.append(f"{'real' if real else 'generated'}_layer_{layer}", index, rows)

    def compute(self) -> dict[str, Tensor]:
        """Figures by name, scalars as of `on_device`; see `fidelity_figures`. Collective; equal on all ranks.

        Raises:
            EvaluationError: fewer images than a metric needs, see `check_enough`.
        """
        figures, self._notes = self.on_first_rank(self._figures_and_notes)
        return {name: self.on_device(torch.tensor(figure, dtype=torch.float64)) for name, figure in figures.items()}

    def notes(self) -> dict[str, str]:
        """Notes, by metric, on how the last `compute` found its figures; often none."""
        return dict(self._notes)

    def per_class(
        self, labels_generated: Tensor, labels_real: Tensor, classes: Iterable[int]
    ) -> dict[int, dict[str, float]]:
        """`fid` of each of these classes, from the current features. Collective; equal on all ranks.

        Args:
            labels_generated: class of each generated image (n,), by its global sample index.
            labels_real: class of each real image (m,), by its global sample index.
            classes: those asked for.

        Raises:
            EvaluationError: a class has fewer than 2 generated or 2 real images, see `check_classes`; the extractor was
                not made for `fid`.
        """
        if "fid" not in self.features.layers:
            raise EvaluationError(
                f"Figures of classes are FID's, but the metrics are {', '.join(self.features.layers)}: add 'fid'."
            )
        with self.sync_context():
            return self.on_first_rank(lambda: self._per_class(labels_generated.cpu(), labels_real.cpu(), classes))

    def real_features(self) -> dict[str, Tensor]:
        """Features (m, d) of the real images of all ranks, by layer, in the order of their index. Collective."""
        return self._gathered_features("real")

    def generated_features(self) -> dict[str, Tensor]:
        """The same of the generated images."""
        return self._gathered_features("generated")

    def _gathered_features(self, kind: str) -> dict[str, Tensor]:
        with self.sync_context():
            return {layer: self.gathered(f"{kind}_layer_{layer}")[1] for layer in self.features.dims}

    def reset(self) -> None:
        """Forget the generated images, and the real ones if `reset_real`."""
        # Copies of the lists, since torchmetrics clears its own in place.
        kept = (
            {} if self.reset_real else {s: list(getattr(self, s)) for s in self._empty if s.startswith("real_layer_")}
        )
        super().reset()
        self._notes = {}
        for name, state in kept.items():
            setattr(self, name, state)

    def _figures_and_notes(self) -> tuple[dict[str, float], dict[str, str]]:
        figures: dict[str, float] = {}
        notes: dict[str, str] = {}
        features = {
            layer: (self._rows("generated", layer)[1], self._rows("real", layer)[1]) for layer in self.features.dims
        }
        for metric, layer in self.features.layers.items():
            generated, real = features[layer]
            check_enough([metric], len(generated), len(real), self.options)
            figures |= fidelity_figures(metric, generated, real, self.options)
            if metric == "fid":
                notes |= _fid_note(len(generated), len(real), generated.shape[1])
        return figures, notes

    def _per_class(
        self, labels_generated: Tensor, labels_real: Tensor, classes: Iterable[int]
    ) -> dict[int, dict[str, float]]:
        classes, layer = [int(c) for c in classes], self.features.layers["fid"]
        index_generated, generated = self._rows("generated", layer)
        index_real, real = self._rows("real", layer)
        labels_generated, labels_real = labels_generated[index_generated], labels_real[index_real]
        check_classes(labels_generated, labels_real, classes)
        return {
            c: fidelity_figures("fid", generated[labels_generated == c], real[labels_real == c], self.options)
            for c in classes
        }

    def _rows(self, kind: str, layer: str) -> tuple[Tensor, Tensor]:
        # On the CPU, as in torch-fidelity's command: a GPU would round differently.
        index, rows = self.gathered(f"{kind}_layer_{layer}")
        return index.cpu(), rows.cpu()


def fidelity_figures(metric: str, generated: Tensor, real: Tensor, options: FidelityOptions) -> dict[str, float]:
    """Figures of one metric from features (n, d) and (m, d), float32 on the CPU; NaN when a feature is not finite.

    `fid` >= 0, Heusel et al. 2017; `kid`, below 0 by chance, and `kid_std` over subsets, Binkowski et al. 2018; `isc`
    from 1 to d, of the generated images' logits only, and `isc_std` over splits, Salimans et al. 2016; `precision` and
    `recall` in [0, 1], Kynkäänniemi et al. 2019.
    """
    used = (generated,) if metric == "isc" else (generated, real)
    if not all(features.isfinite().all() for features in used):
        # KID's subsets may leave the image out, and to precision it would be one that is far away.
        return dict.fromkeys(FIGURES[metric], math.nan)
    if metric == "fid":
        return {"fid": frechet_distance(generated, real)}
    if metric == "kid":
        found = kid_features_to_metric(generated, real, verbose=False, **asdict(options))
        return {"kid": found[KEY_METRIC_KID_MEAN], "kid_std": found[KEY_METRIC_KID_STD]}
    if metric == "isc":
        found = isc_features_to_metric(generated, options.isc_splits, options.samples_shuffle, options.rng_seed)
        return {"isc": found[KEY_METRIC_ISC_MEAN], "isc_std": found[KEY_METRIC_ISC_STD]}
    images, block = max(len(generated), len(real)), options.prc_batch_size
    in_parts = min(block, images) * images > PRC_DISTANCES
    block = min(block, max(1, PRC_DISTANCES // images)) if in_parts else block
    parts = {"save_cpu_ram": in_parts, "prc_batch_size": block}
    found = prc_features_to_metric(generated, real, verbose=False, **asdict(options) | parts)
    return {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL]}


def check_enough(
    metrics: Iterable[str],
    num_generated: int,
    num_real: int,
    options: FidelityOptions = FidelityOptions(),
    where: str | None = None,
) -> None:
    """Raise EvaluationError unless there are enough images for these metrics; it says what each needs.

    FID needs 2 generated and 2 real images, KID `kid_subset_size`, precision and recall `prc_neighborhood` + 1, the
    Inception score `isc_splits` generated ones.

    Args:
        metrics: of `METRICS`.
        num_generated: images to generate.
        num_real: real images.
        options: of the metrics.
        where: what has these images, for the message: "split 'out'".
    """
    metrics = tuple(metrics)
    check_metrics(metrics)
    # How many images a metric needs, the option that decides it, and by how much that is smaller.
    needs = {
        "fid": (2, None, 0),
        "kid": (options.kid_subset_size, "kid_subset_size", 0),
        "isc": (options.isc_splits, "isc_splits", 0),
        "prc": (options.prc_neighborhood + 1, "prc_neighborhood", 1),
    }
    problems = []
    for metric in metrics:
        needed, option, less = needs[metric]
        have = num_generated if metric == "isc" else min(num_generated, num_real)
        if have >= needed:
            continue
        real_too, real = ("", "") if metric == "isc" else (f" and {needed:,} real", f" and {num_real:,} real")
        problem = f"{metric.upper()} needs at least {needed:,} generated{real_too} images"
        problem += f" ({option} is {needed - less:,})" if option else ""
        problem += f"; {f'in {where} ' if where else ''}there are {num_generated:,} generated{real}. Take more images"
        # A smaller value must be one that the option allows.
        if option and have - less >= (2 if metric == "kid" else 1):
            problem += f", set {option} to at most {have - less:,}"
        problems.append(f"{problem}, or leave {metric!r} out of the metrics.")
    if problems:
        raise EvaluationError("\n".join(problems))


def check_classes(
    labels_generated: Tensor, labels_real: Tensor, classes: Iterable[int], names: Sequence[str] | None = None
) -> None:
    """Raise EvaluationError unless each of these classes has 2 generated and 2 real images for a FID of its own.

    Args:
        labels_generated: class of each generated image (n,), from 0.
        labels_real: class of each real image (m,), from 0.
        classes: those that get a figure.
        names: of all classes, for the message.
    """
    classes = list(classes)
    num_classes = max(classes, default=0) + 1
    generated = torch.bincount(labels_generated, minlength=num_classes).tolist()
    real = torch.bincount(labels_real, minlength=num_classes).tolist()
    short = [c for c in classes if min(generated[c], real[c]) < 2]
    if short:
        shown = ", ".join(
            f"{c if names is None else repr(names[c])} ({generated[c]:,} generated, {real[c]:,} real)"
            for c in short[:3]
        )
        more = f" and {len(short) - 3:,} more" if len(short) > 3 else ""
        raise EvaluationError(
            "FID of a class needs at least 2 generated and 2 real images of it; "
            f"there are too few of class {shown}{more}. Take more images, or leave these classes out."
        )


def _fid_note(num_generated: int, num_real: int, dim: int) -> dict[str, str]:
    if not (is_low_rank(num_generated, dim) or is_low_rank(num_real, dim)):
        return {}
    return {
        "fid": f"exact low-rank form, for a rank-deficient covariance: {num_generated:,} generated and "
        f"{num_real:,} real images, {dim:,} features"
    }
