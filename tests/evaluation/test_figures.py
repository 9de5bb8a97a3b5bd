"""Figures of an evaluation with their replicates and landmarks, in whatever classes and numbers of images there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_vfs.core import EncoderConfig, SamplingConfig
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.evaluation import EvaluationPlan, EvaluationRecord, evaluate
from lightning_vfs.evaluation.intervals import standard_error
from lightning_vfs.evaluation.landmarks import NAMES, ROTATION, SCALING, SHIFT, jittered, landmark_images
from lightning_vfs.metrics.fidelity import FidelityOptions
from tests.callbacks.conftest import CONFIG, TINY, Painter, Patterns

pytestmark = pytest.mark.numeric

ALL = {"metrics": ["fid", "kid", "isc", "prc"], "options": FidelityOptions(kid_subset_size=10, isc_splits=2)}


def plan_of(**options: Any) -> EvaluationPlan:
    few = {"num_images": 40, "feature_extractor": TINY, "splits": ["out"], "sampling": SamplingConfig(2)}
    return EvaluationPlan(**few | {"few_shot_way": (2, 5)} | options)


def named(record: EvaluationRecord) -> dict[str, Any]:
    """Figures by what is before the extractor and the split."""
    return {name.split("/")[0].split("[")[0]: f for name, f in record.figures.items() if name.endswith("/out")}


@pytest.fixture(scope="module")
def everything() -> EvaluationRecord:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    from tests.callbacks.conftest import TinyExtractor

    if TINY not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(TINY, TinyExtractor)
    return evaluate(Painter(), Patterns(), plan_of(**ALL))


def test_every_figure_has_replicates_and_the_error_that_follows(everything: EvaluationRecord) -> None:
    figures = named(everything)
    assert everything.splits["out"].groups == 20 and everything.metrics.diversity_images == 2
    assert set(figures) == {
        "fid", "kid", "kid_std", "isc", "isc_std", "precision", "recall", "novel_precision", "novel_recall",
        "few_shot_accuracy", "few_shot_accuracy_2", "few_shot_accuracy_all", "novel_accuracy", "support_affinity",
        "copy_rate", "train_copy_rate", "diversity", "diversity_pixels",
    }  # fmt: skip
    for name, figure in figures.items():
        if "_std" in name:
            assert figure.replicates is None and figure.standard_error is None
            continue
        assert figure.replicates is not None and len(figure.replicates) == 20, name
        assert figure.standard_error == pytest.approx(standard_error(figure.replicates), abs=1e-12), name
        # KID's value is of its subsets.
        assert name == "kid" or abs(np.mean(figure.replicates) - figure.value) < 0.05 * abs(figure.value) + 0.05, name


def test_a_figure_stands_beside_its_landmarks(everything: EvaluationRecord) -> None:
    figures = named(everything)
    for name, figure in figures.items():
        assert figure.copier is not None and figure.mean_of_support is not None, name
        assert (figure.jittered_mean is None) == name.startswith("diversity"), name
        assert figure.floor is not None or "std" in name or name == "kid", name
    assert figures["support_affinity"].copier == 1 and figures["novel_accuracy"].copier == 0
    assert figures["support_affinity"].mean_of_support == everything.splits["out"].affinity_mean_of_support
    assert figures["fid"].mean_of_support < figures["fid"].jittered_mean
    assert figures["novel_precision"].copier < figures["precision"].copier == 1
    lines = everything.in_words()
    line = next(line for line in lines if line.startswith("fid"))
    fid = figures["fid"]
    assert line == (
        f"fid[{TINY}]/out {fid.value:.4g} ± {fid.standard_error:.2g} (floor {fid.floor:.4g}, copier {fid.copier:.4g})"
    )
    assert not any("_std" in line for line in lines)


def test_replicates_are_those_of_other_batches(everything: EvaluationRecord) -> None:
    other = evaluate(Painter(), Patterns(), plan_of(**ALL, batch_size=7))
    for name, figure in everything.figures.items():
        assert other.figures[name].value == pytest.approx(figure.value, rel=1e-6), name
        if figure.replicates:
            assert other.figures[name].replicates == pytest.approx(figure.replicates, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize(
    ("classes", "groups", "note"),
    [
        (1, 20, "test: intervals are for this one class alone: groups are of episodes, not of classes."),
        (3, 20, "test: intervals are for these 3 classes alone: groups are of episodes, not of classes."),
        (5, 5, "test: intervals are of 5 groups of classes; of fewer than 8 they say little."),
        (9, 9, None),
    ],
)
def test_few_classes_are_few_groups_or_groups_of_episodes(classes: int, groups: int, note: str, tiny: str) -> None:
    data = Patterns(classes=3 * classes, per_class=9, split_fractions=(1 / 3, 1 / 3, 1 / 3))
    way = min(classes, 2) if classes > 1 else None
    record = evaluate(Painter(), data, plan_of(few_shot_way=way, num_images=27, metrics=["fid", "prc"]))
    assert record.splits["out"].groups == groups and len(record.splits["out"].classes) == classes
    assert [each for each in record.notes if "intervals" in each] == ([note] if note else [])
    for name, figure in named(record).items():
        assert figure.replicates is None or len(figure.replicates) == groups, name
    assert named(record)["fid"].replicates and named(record)["support_affinity"].replicates
    assert ("few_shot_accuracy_all" in named(record)) == (classes > 1)


def test_images_that_are_not_finite_have_no_replicates(tiny: str) -> None:
    class Broken(Painter):
        def generate(self, support: torch.Tensor, index: torch.Tensor, **_: Any) -> torch.Tensor:
            images = super().generate(support, index)
            images[index == 3] = torch.nan
            return images

    with pytest.warns(UserWarning, match="not finite"):
        record = evaluate(Broken(), Patterns(), plan_of(**ALL))
    figures = named(record)
    for name in ("fid", "kid", "isc", "precision", "novel_precision", "novel_recall"):
        assert np.isnan(figures[name].value) and figures[name].replicates is None, name
    assert figures["support_affinity"].replicates and figures["few_shot_accuracy"].replicates
    assert EvaluationRecord.from_dict(record.to_dict()).to_dict() == record.to_dict()


def test_diversity_is_of_images_of_one_support(tiny: str) -> None:
    class Answers(Painter):
        """Images of the support in turn, or always the first."""

        turns = True

        def generate(self, support: torch.Tensor, index: torch.Tensor, **_: Any) -> torch.Tensor:
            assert len(index.unique()) == len(index)
            seen.extend(index.tolist())
            return support[torch.arange(len(support)), index % 3 if self.turns else 0]

    seen: list[int] = []
    data, plan = Patterns(per_class=9), plan_of(diversity_images=4)
    record = evaluate(Answers(), data, plan)
    figures, present = named(record), sum(count > 0 for count in record.splits["out"].generated_per_class.values())
    assert sorted(seen) == list(range(40 + 3 * present)), "every image has noise of its own"
    # Of 4 images by turns, 5 or 6 pairs of 6 differ; these are real images of the class.
    assert figures["diversity_pixels"].value == pytest.approx(5 / 6, abs=0.15)
    Answers.turns = False
    figures = named(evaluate(Answers(), data, plan))
    assert figures["diversity"].value == figures["diversity_pixels"].value == figures["diversity"].copier == 0
    seen.clear()
    assert "diversity" not in named(evaluate(Answers(), data, plan_of(diversity_images=0)))
    assert sorted(seen) == list(range(40))
    with pytest.raises(ConfigError, match="diversity_images is 1, but pairs of images are compared"):
        plan_of(diversity_images=1)


def test_replicates_of_fid_are_optional(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_vfs.evaluation.novelty.WIDE", 10)
    few = {"num_images": 10, "few_shot_way": None, "diversity_images": 0}
    fid = [named(evaluate(Painter(), Patterns(), plan_of(**few, fid_replicates=o)))["fid"] for o in (None, True, False)]
    assert [each.replicates is not None for each in fid] == [False, True, False]
    assert fid[0].value == fid[1].value


def test_without_a_support_there_is_neither_copier_nor_diversity(tiny: str) -> None:
    model = Painter(replace(CONFIG, encoder=EncoderConfig(architecture="none")))
    model.generate = lambda support, index, **_: torch.rand(len(index), 1, 8, 8) - 0.5  # type: ignore[method-assign]
    record = evaluate(model, Patterns(), plan_of(**ALL))
    assert not any("novel" in name or "diversity" in name for name in named(record))
    assert all(getattr(figure, name) is None for figure in record.figures.values() for name in NAMES)
    assert named(record)["fid"].replicates and named(record)["few_shot_accuracy_all"].replicates
    assert record.metrics.diversity_images is None


def test_floors_have_every_class_in_the_same_share(tiny: str) -> None:
    """Classes are far apart: a class that one set had more of would give a distance."""
    record = evaluate(Painter(), Patterns(per_class=8, noise=1), plan_of(num_images=54))
    floor, images = named(record)["fid"].floor, named(record)["fid"].floor_images
    assert images == (43, 173) and floor is not None
    few = evaluate(Painter(), Patterns(per_class=8, noise=1), plan_of(num_images=54, num_real_images=108))
    assert named(few)["fid"].floor_images == (54, 108)
    assert max(floor, named(few)["fid"].floor) < 0.01


# -- landmarks --------------------------------------------------------------------------------------------------------


def test_the_mean_is_jittered_by_seed_and_index_alone() -> None:
    images = torch.rand(6, 3, 12, 20, generator=torch.Generator().manual_seed(0)) * 255
    whole = jittered(images, np.arange(6), 0)
    parts = torch.cat([jittered(images[part], np.array(part), 0) for part in ([0, 1, 2, 3], [4, 5])])
    assert torch.equal(parts, whole)
    assert not torch.equal(jittered(images, np.arange(6), 1), whole)
    pair = jittered(images[:1].expand(2, -1, -1, -1), np.arange(2), 0)
    assert not torch.equal(pair[0], pair[1])


def test_angles_scales_and_shifts_are_within_those_that_are_published() -> None:
    """Read off where two points of a picture of coordinates came from."""
    number, side = 400, 32
    places = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    picture = torch.stack(torch.meshgrid(places, places, indexing="ij"))
    found = jittered(picture.expand(number, -1, -1, -1), np.arange(number), 0)
    near = slice(side // 2 - 1, side // 2 + 1)
    centre = found[:, :, near, near].mean(dim=(2, 3))
    step = (found[:, :, side // 2, near].diff(dim=2)[:, :, 0]) * side / 2  # of one pixel to the right: (down, right)
    angle, scale = torch.atan2(step[:, 0], step[:, 1]).rad2deg(), 1 / step.norm(dim=1)
    for values, most in ((centre / 2, SHIFT), (angle, ROTATION), (scale - 1, SCALING)):
        assert 0.95 * most < values.abs().max() <= most * 1.001
        assert abs(values.mean()) < 0.15 * most


def test_landmarks_are_made_of_the_support() -> None:
    images = Patterns(channels=3).split("test")
    episodes = images.episodes(9, 3, 0)
    rows = np.array([2, 5, 7])
    support = images.uint8(episodes.supports[rows]).double()
    made = {name: landmark_images(name, images, episodes, rows, 0) for name in NAMES}
    assert torch.equal(made["copier"], support[:, 0].to(torch.uint8))
    assert (made["mean_of_support"].double() - support.mean(dim=1)).abs().max() <= 0.5 + 1e-4
    assert made["jittered_mean"].shape == support[:, 0].shape and made["jittered_mean"].dtype == torch.uint8
