"""Replicates of every metric: each is the metric itself of what is left without a group of classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_vfs.metrics import FewShotAccuracy, FidelityOptions, fidelity
from lightning_vfs.metrics.diversity import Diversity, mean_squared_distance
from lightning_vfs.metrics.episode_figures import nearest_mean_hits
from lightning_vfs.metrics.frechet import frechet_distance
from lightning_vfs.metrics.jackknife import Groups, fidelity_replicates, minima_without
from lightning_vfs.metrics.manifolds import precision_recall

pytestmark = pytest.mark.numeric

COUNT = 4


def drawn(classes: int = 9, dim: int = 6, per_class: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Groups, Tensor]:
    """Generated and real features of classes of three groups and of an empty one, and the labels of the real ones."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centres = 2 * torch.randn(classes, dim, generator=rng)
    real, generated = (centres[labels] + torch.randn(len(labels), dim, generator=rng) * spread for spread in (1.0, 1.2))
    of_class = torch.arange(classes) % (COUNT - 1)
    order = torch.randperm(len(labels), generator=rng)[: 5 * classes]
    groups = Groups(COUNT, of_class[labels[order]], of_class[labels], of_class)
    return generated[order], real, groups, labels


def left(generated: Tensor, real: Tensor, groups: Groups, group: int) -> tuple[Tensor, Tensor]:
    return generated[groups.generated != group], real[groups.real != group]


@pytest.mark.parametrize("dim", [6, 40, 100], ids=["many images", "low rank without a group", "low rank"])
def test_fid(dim: int) -> None:
    generated, real, groups, _ = drawn(dim=dim)
    real[:, 0] = generated[:, 0] = 1  # a feature that is dead
    found = fidelity_replicates("fid", generated, real, groups, FidelityOptions())["fid"]
    expected = [frechet_distance(*left(generated, real, groups, group)) for group in range(COUNT)]
    # frechet_distance takes means in float32, as torch-fidelity does.
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"kid_kernel_poly_degree": 2, "kid_kernel_poly_gamma": 0.5}])
def test_kid(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_vfs.metrics.jackknife.CHUNK", 200)
    generated, real, groups, _ = drawn()
    given = FidelityOptions(kid_subset_size=2, **options)
    found = fidelity_replicates("kid", generated, real, groups, given)["kid"]
    for group in range(COUNT):
        x, y = (each.double().numpy() for each in left(generated, real, groups, group))
        gamma = given.kid_kernel_poly_gamma or 1 / x.shape[1]
        kernel = [(gamma * a @ b.T + 1) ** given.kid_kernel_poly_degree for a, b in ((x, x), (y, y), (x, y))]
        within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
        assert found[group] == pytest.approx(sum(within) - 2 * kernel[2].mean(), rel=1e-9)


def test_kid_is_what_its_subsets_are_samples_of() -> None:
    generated, real, groups, _ = drawn()
    whole = fidelity_replicates("kid", generated, real, groups, FidelityOptions())["kid"][COUNT - 1]
    sampled = fidelity.fidelity_figures("kid", generated, real, FidelityOptions(kid_subsets=400, kid_subset_size=40))
    assert whole == pytest.approx(sampled["kid"], abs=4 * sampled["kid_std"] / 20)


def test_isc() -> None:
    generated, real, groups, _ = drawn()
    options = FidelityOptions(isc_splits=3)
    found = fidelity_replicates("isc", generated, real, groups, options)["isc"]
    for group in range(COUNT):
        (rest, _) = left(generated, real, groups, group)
        assert found[group] == fidelity.fidelity_figures("isc", rest, real, options)["isc"]
    few = Groups(COUNT, torch.tensor([0, 0, 1]), groups.real)
    assert math.isnan(fidelity_replicates("isc", generated[:3], real, few, options)["isc"][0])


@pytest.mark.parametrize("spare", [12, 0], ids=["neighbours kept", "neighbours searched again"])
def test_precision_and_recall(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_vfs.metrics.manifolds.SPARE", spare)
    monkeypatch.setattr("lightning_vfs.metrics.manifolds.CHUNK", 300)
    generated, real, groups, _ = drawn(dim=3)
    of_generated = groups.generated
    rng = np.random.default_rng(0)
    support = torch.from_numpy(rng.integers(-1, len(real), (len(generated), 4)))
    found = precision_recall(generated, real, 3, of_generated, groups.real, COUNT, support)
    assert {len(values) for values in found.values()} == {1 + COUNT}
    for column in range(1 + COUNT):
        x, y = left(generated, real, groups, column - 1)
        expected = fidelity.fidelity_figures("prc", x, y, FidelityOptions())
        assert [found[name][column] for name in expected] == pytest.approx(list(expected.values())), column
        # Without their supports, by loops.
        kept = (groups.real != column - 1).nonzero()[:, 0].tolist()
        made = (of_generated != column - 1).nonzero()[:, 0].tolist()
        radius = {
            kind: [float((rows - row).norm(dim=1).sort().values[3]) for row in rows] for kind, rows in enumerate((x, y))
        }
        inside = [
            [(float((generated[i] - real[r]).norm()), a, b) for b, r in enumerate(kept) if r not in support[i].tolist()]
            for a, i in enumerate(made)
        ]
        precise = np.mean([any(d <= radius[1][b] for d, _, b in row) for row in inside])
        recalled = {b for row in inside for d, a, b in row if d <= radius[0][a]}
        assert found["novel_precision"][column] == pytest.approx(precise)
        assert found["novel_recall"][column] == pytest.approx(len(recalled) / len(kept))


def test_too_few_images_for_a_ball_have_no_precision() -> None:
    generated, real, _, _ = drawn(classes=1)
    groups = torch.tensor([0, 0, 0, 0, 1])
    found = precision_recall(generated, real, 3, groups, torch.zeros(len(real)), 2, torch.full((5, 1), -1))
    assert [math.isnan(value) for value in found["precision"]] == [False, True, False]
    assert [math.isnan(value) for value in found["recall"]] == [False, True, False]


def test_images_that_are_not_finite_have_no_replicates() -> None:
    generated, real, groups, _ = drawn()
    generated[3, 2] = math.nan
    for metric in ("fid", "kid", "isc"):
        (found,) = fidelity_replicates(metric, generated, real, groups, FidelityOptions()).values()
        assert len(found) == COUNT and all(map(math.isnan, found))


@pytest.mark.parametrize("way", [[2, 4], 9])
def test_few_shot_accuracy(way: int | list[int]) -> None:
    """Among the classes that are left; the choices that a group had are made up for by others."""
    generated, real, groups, labels = drawn(dim=2)
    assert groups.classes is not None
    own = torch.randint(0, 9, (len(generated),), generator=torch.Generator().manual_seed(0))
    metric = FewShotAccuracy(real, labels, way, groups=groups.classes)
    plain = FewShotAccuracy(real, labels, way)
    index = torch.arange(len(generated))
    for part in (index[30:], index[:30]):
        metric.update(generated[part], own[part], part)
    plain.update(generated, own, index)
    assert torch.equal(metric.compute(), plain.compute())
    everyone = FewShotAccuracy(real, labels, 9)._others(index, own)
    ways = way if isinstance(way, list) else [way]
    found = metric.replicates(groups.classes[own])
    assert [len(each) for each in found] == [COUNT - 1] * len(ways)
    for column, each in enumerate(ways):
        for group in range(COUNT - 1):
            hits = []
            for i in index.tolist():
                if groups.classes[own[i]] == group:
                    continue
                rivals = [c for c in everyone[i].tolist() if groups.classes[c] != group][: each - 1]
                apart = {c: (generated[i].double() - real[labels == c].double().mean(0)).norm() for c in rivals}
                mine = (generated[i].double() - real[labels == own[i]].double().mean(0)).norm()
                hits.append(bool(mine < min(apart.values())))
            assert found[column][group] == pytest.approx(np.mean(hits)), (each, group)


def test_few_shot_accuracy_of_groups_of_images() -> None:
    generated, real, _, labels = drawn(dim=2)
    own = torch.zeros(len(generated), dtype=torch.int64)
    metric = FewShotAccuracy(real, labels, 3)
    index = torch.arange(len(generated))
    metric.update(generated, own, index)
    hits = metric.judged(generated, own, index)[1][:, 0, 0].double()
    (found,) = metric.replicates(index % 5)
    assert found == pytest.approx([float(hits[index % 5 != group].mean()) for group in range(5)])


def test_accuracy_among_all_classes() -> None:
    generated, real, groups, labels = drawn(dim=2)
    assert groups.classes is not None
    own = torch.randint(0, 9, (len(generated),), generator=torch.Generator().manual_seed(0))
    none = torch.full((len(generated), 1), -1)
    found = nearest_mean_hits(generated, own, real, labels, none, groups.classes)
    assert torch.equal(found[:, 0], nearest_mean_hits(generated, own, real, labels, none))
    for group in range(COUNT - 1):
        there, kept = groups.classes[labels] != group, groups.classes[own] != group
        expected = nearest_mean_hits(generated[kept], own[kept], real[there], labels[there], none[kept])
        assert torch.equal(found[kept, 1 + group], expected)


def test_minima_without_a_group() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 4.0, math.inf]])
    found = minima_without(values, torch.tensor([0, 1, 1, 2]), 3)
    assert found.tolist() == [[1, 1, 3, 1], [1, 1, 1, 1]]
    assert minima_without(values[:, :1], torch.tensor([0]), 1).tolist() == [[3, math.inf], [1, math.inf]]


def test_diversity_is_the_ratio_of_sums_whatever_the_batches() -> None:
    rng = torch.Generator().manual_seed(0)
    images, real = torch.randn(7, 3, 2, 4, generator=rng), torch.rand(7, generator=rng)
    real[2] = math.nan
    pairs = torch.stack([(images[:, a] - images[:, b]).square().sum(dim=(1, 2)) for a, b in ((0, 1), (0, 2), (1, 2))])
    assert torch.allclose(mean_squared_distance(images), pairs.mean(dim=0).double(), rtol=1e-5)
    metric = Diversity((2, 4), torch.float32, 3, real)
    index = torch.randperm(21, generator=rng)
    for part in index.split(4):
        metric.update(images.flatten(0, 1)[part], part)
    metric.update(images.flatten(0, 1)[:3], torch.arange(3))  # twice
    part = torch.tensor([0, 1, 3, 4, 5, 6])
    assert float(metric.compute()) == pytest.approx(float(pairs.mean(dim=0)[part].sum() / real[part].sum()), rel=1e-5)
    (found,) = metric.replicates(torch.tensor([1, 1, 1, 0, 0, 0, 0]).bool()[:, None])
    assert found == pytest.approx(float(pairs.mean(dim=0)[:2].sum() / real[:2].sum()), rel=1e-5)


def test_diversity_of_one_answer_is_none_and_of_what_is_not_finite_not_known() -> None:
    same = Diversity((2,), torch.float32, 2, torch.ones(3))
    same.update(torch.tensor([[1.0, 2.0]]).expand(6, 2), torch.arange(6))
    assert float(same.compute()) == 0
    same.update(torch.tensor([[math.nan, 2.0]]), torch.tensor([2]))
    same.reset()
    same.update(torch.tensor([[1.0, math.nan]]).expand(6, 2), torch.arange(6))
    assert math.isnan(float(same.compute()))
    nothing = Diversity((2,), torch.float32, 2, torch.full((3,), math.nan))
    nothing.update(torch.ones(6, 2), torch.arange(6))
    assert math.isnan(float(nothing.compute()))
