"""FewShotAccuracy: nearest class mean among a few classes, drawn by each image's global index."""

import math

import numpy as np
import pytest
import torch

from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.metrics import FewShotAccuracy

pytestmark = pytest.mark.numeric


def clusters(classes=30, per_class=8, spread=0.1, seed=0):
    """Features around a centre for each class, and labels."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 5, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(classes).repeat_interleave(per_class)
    return centres[labels] + spread * torch.randn(len(labels), 5, generator=rng), labels


def accuracy(metric, features, labels, batch_size=1000, order=None, **kwargs):
    metric.reset()
    rows = torch.arange(len(features)) if order is None else order
    for batch in rows.split(batch_size):
        metric.update(features[batch], labels[batch], batch, **kwargs)
    return metric.compute().item()


def test_images_like_their_class_are_right_and_others_are_at_chance():
    real, labels = clusters()
    generated, _ = clusters(seed=1)
    metric = FewShotAccuracy(real, labels, way=20)
    assert accuracy(metric, generated, labels) > 0.98
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert accuracy(metric, generated, shuffled) == pytest.approx(1 / 20, abs=0.04)


def test_images_that_ignore_their_support_are_at_chance():
    real, labels = clusters(classes=40, per_class=25)
    metric = FewShotAccuracy(real, labels, way=20)
    same = real[:1].expand(1000, -1)
    assert accuracy(metric, same, labels) == pytest.approx(1 / 20, abs=0.02)


def test_real_images_do_not_count_in_their_own_mean():
    real, labels = clusters(per_class=3, spread=1.0)
    metric = FewShotAccuracy(real, labels, way=5, seed=3)
    others = metric._others(torch.arange(len(real)), labels)
    right = []
    for i in range(len(real)):
        elsewhere = torch.arange(len(real)) != i
        means = [real[elsewhere & (labels == c)].double().mean(dim=0) for c in [labels[i].item(), *others[i].tolist()]]
        right.append(np.argmin([(real[i].double() - mean).norm().item() for mean in means]) == 0)
    found = accuracy(metric, real, labels, leave_one_out=True)
    assert found == pytest.approx(np.mean(right))
    assert found < accuracy(metric, real, labels)


def test_does_not_depend_on_order_batches_or_repetition():
    real, labels = clusters(spread=1.5)
    metric = FewShotAccuracy(real, labels, way=7)
    expected = accuracy(metric, real, labels)
    order = torch.cat([torch.arange(len(real)).flip(0), torch.arange(10)])
    assert 0.2 < expected < 0.9
    assert accuracy(metric, real, labels, batch_size=7, order=order) == expected


def test_other_classes_are_distinct_uniform_and_drawn_by_index_and_seed():
    real, labels = clusters(classes=12)
    metric = FewShotAccuracy(real, labels, way=4)
    index, own = torch.arange(20000), torch.arange(20000) % 12
    others = metric._others(index, own)
    assert others.shape == (20000, 3)
    assert all(len(set(row)) == 3 for row in others[:500].tolist())
    assert not (others == own[:, None]).any()
    share = torch.bincount(others.flatten()) / others.numel()
    assert share.numpy() == pytest.approx(1 / 12, rel=0.05)
    assert torch.equal(metric._others(index[100:110], own[100:110]), others[100:110])
    assert not torch.equal(FewShotAccuracy(real, labels, way=4, seed=1)._others(index, own), others)


def test_all_classes_can_be_compared():
    real, labels = clusters(classes=6)
    metric = FewShotAccuracy(real, labels, way=6)
    assert sorted(metric._others(torch.tensor([5]), torch.tensor([2]))[0].tolist()) == [0, 1, 3, 4, 5]


def test_classes_with_one_real_image_take_no_part():
    real, labels = clusters(classes=6, per_class=4)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[1:4] = False  # one image of class 0 is left
    metric = FewShotAccuracy(real[kept], labels[kept], way=5)
    assert not (metric._others(torch.arange(100), torch.full((100,), 3)) == 0).any()
    metric.update(real, labels, torch.arange(len(labels)))
    assert len(metric.gathered("hits")[1]) == len(labels) - 4
    only_class_0 = FewShotAccuracy(real[kept], labels[kept], way=5)
    only_class_0.update(real[:4], labels[:4], torch.arange(4))
    with pytest.raises(EvaluationError, match="no image of a class"):
        only_class_0.compute()


def test_a_class_without_any_real_image_takes_no_part():
    real, labels = clusters(classes=7, per_class=4)
    kept = labels < 6
    metric = FewShotAccuracy(real[kept], labels[kept], way=5)
    metric.update(real, labels, torch.arange(len(labels)))
    assert len(metric.gathered("hits")[1]) == kept.sum()


def test_features_that_are_not_finite_are_wrong():
    real, labels = clusters(spread=0.01)
    generated = real.clone()
    generated[::2] = math.nan
    assert accuracy(FewShotAccuracy(real, labels), generated, labels) == 0.5


def test_too_few_classes_are_refused_with_both_numbers():
    real, labels = clusters(classes=6)
    with pytest.raises(EvaluationError, match=r"among 20 classes .* has 6 .*few_shot_way to at most 6"):
        FewShotAccuracy(real, labels, way=20)


def test_several_ways_at_once_are_what_each_gives_alone():
    real, labels = clusters(spread=1.5)
    generated, _ = clusters(spread=1.5, seed=1)
    metric = FewShotAccuracy(real, labels, way=(5, 20, 2))
    metric.update(generated, labels, torch.arange(len(labels)))
    together = metric.compute()
    assert together.shape == (3,)
    assert len(set(together.tolist())) == 3
    for way, figure in zip(metric.ways, together.tolist(), strict=True):
        assert accuracy(FewShotAccuracy(real, labels, way), generated, labels) == figure
    metric.reset()
    metric.update(real, labels, torch.arange(len(labels)), leave_one_out=True)
    alone = [accuracy(FewShotAccuracy(real, labels, way), real, labels, leave_one_out=True) for way in metric.ways]
    assert metric.compute().tolist() == alone


def test_chance_is_one_in_as_many_classes():
    real, labels = clusters()
    assert FewShotAccuracy(real, labels).chance.item() == 1 / 20
    assert FewShotAccuracy(real, labels, way=(5, 20)).chance.tolist() == [1 / 5, 1 / 20]


def test_figures_stay_as_they_were():
    real, labels = clusters(spread=1.5)
    generated, _ = clusters(spread=1.5, seed=1)
    metric = FewShotAccuracy(real, labels, way=20)
    assert accuracy(metric, generated, labels) == 82 / 240
    assert accuracy(metric, real, labels, leave_one_out=True) == 73 / 240


@pytest.mark.parametrize("way", [1, (5, 1), ()])
def test_a_way_below_two_is_refused(way):
    real, labels = clusters()
    with pytest.raises(ConfigError, match=r"way is .*; allowed: a number of classes from 2 on"):
        FewShotAccuracy(real, labels, way=way)


def test_the_largest_way_needs_as_many_classes():
    real, labels = clusters(classes=6)
    with pytest.raises(EvaluationError, match=r"among 20 classes .* has 6"):
        FewShotAccuracy(real, labels, way=(5, 20, 3))
