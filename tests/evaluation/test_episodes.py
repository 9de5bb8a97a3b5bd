"""What a protocol generates and compares: support pools, and numbers of images per class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_vfs.core.errors import ConfigError, DataError, EvaluationError
from lightning_vfs.core.files import hash_of
from lightning_vfs.data.images import ClassImages
from lightning_vfs.evaluation import EvaluationPlan, evaluate
from lightning_vfs.evaluation.episodes import draw_episodes, support_pool
from tests.callbacks.conftest import TINY, Patterns
from tests.evaluation.test_evaluate import Copier, plan_of

COUNTS = [7, 4, 12, 0, 5]


def images() -> ClassImages:
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    return ClassImages(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), [f"c{i}" for i in range(5)], labels)


@pytest.mark.parametrize("pool", [0.5, 0.01, 0.99, 3, 5, 100])
@pytest.mark.parametrize("per_class", [None, 1, 9])
def test_supports_are_drawn_from_the_pool_and_held_out_images_from_the_rest(pool, per_class) -> None:
    data, shots = images(), 3
    aside = support_pool(data, pool, shots, seed=0)
    sizes = np.bincount(data.labels[aside], minlength=5)
    wanted = [round(pool * n) if pool < 1 else pool for n in COUNTS]
    assert sizes.tolist() == [min(max(w, shots), n - 1) if n else 0 for w, n in zip(wanted, COUNTS, strict=True)]
    episodes = draw_episodes(data, 50, shots, 0, aside, per_class)
    assert len(episodes) == (50 if per_class is None else 4 * per_class)
    assert aside[episodes.supports].all() and not aside[episodes.targets].any()
    assert (data.labels[episodes.supports] == episodes.labels[:, None]).all()
    assert (data.labels[episodes.targets] == episodes.labels).all()
    assert all(len(set(row)) == shots for row in episodes.supports.tolist())
    if per_class:
        assert np.bincount(episodes.labels, minlength=5).tolist() == [per_class if n else 0 for n in COUNTS]
        assert sorted(episodes.labels[:4].tolist()) == [0, 1, 2, 4], "an image of every class, then another"
    else:
        first = episodes.targets[: (~aside).sum()]
        assert len(set(first.tolist())) == len(first), "distinct while there are others"


def test_without_a_pool_the_target_alone_is_left_out() -> None:
    episodes = draw_episodes(images(), 0, 3, 0, None, per_class=20)
    assert not (episodes.supports == episodes.targets[:, None]).any()
    assert (images().labels[episodes.supports] == episodes.labels[:, None]).all()
    plain = draw_episodes(images(), 30, 3, 1)
    assert (plain.supports == images().episodes(30, 3, 1).supports).all()


def test_pools_are_drawn_by_seed() -> None:
    first, again, other = (support_pool(images(), 0.5, 1, seed) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    a, b = (draw_episodes(images(), 20, 2, 0, first, per_class) for per_class in (2, 5))
    assert (a.targets == b.targets[: len(a)]).all() and (a.supports == b.supports[: len(a)]).all()


def test_what_is_too_small_is_refused() -> None:
    with pytest.raises(DataError, match=r"classes have fewer: c1 \(4\)"):
        draw_episodes(images(), 5, 4, 0, support_pool(images(), 0.5, 4, 0))
    with pytest.raises(DataError, match=r"support_pool sets 1 of the images of class c[12] aside, and a support has 3"):
        draw_episodes(images(), 30, 3, 0, support_pool(images(), 0.1, 1, 0))
    for pool in (0, 1.5, -1, True, "half", float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="support_pool is .*it must be a share of each class"):
            EvaluationPlan(support_pool=pool)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="support_pool is 3, but a support has 5 images"):
        EvaluationPlan(support_pool=3, shots=5)
    with pytest.raises(ConfigError, match="images_per_class is 0"):
        EvaluationPlan(images_per_class=0)


def test_supports_are_no_longer_among_the_real_images(tiny) -> None:
    """With landmarks and verdicts as without."""
    data, name = Patterns(per_class=12), f"fid[{TINY}]/out"
    options = {"num_images": 100, "shots": 3}
    leaky = evaluate(Copier(), data, plan_of(**options))
    fair = evaluate(Copier(), data, plan_of(**options, support_pool=0.5))
    assert set(fair.splits["out"].real_per_class.values()) == {6}
    split = data.split("test")
    assert fair.splits["out"].real_images_sha256 == hash_of(np.flatnonzero(~support_pool(split, 0.5, 3, 0)))
    assert leaky.splits["out"].real_images_sha256 == hash_of(np.arange(len(split)))
    for record in (leaky, fair):
        assert record.figures[name].copier == pytest.approx(record.figures[name].value, rel=1e-6)
        assert record.splits["out"].verdict == "copies its support"
    assert (fair.sampling.support_pool, fair.sampling.images_per_class) == (0.5, None)
    with pytest.raises(EvaluationError, match="support_pool is 0.5, and the number .* depends on shots, which is null"):
        evaluate(Copier(), data, plan_of(support_pool=0.5))
    with pytest.raises(EvaluationError, match="has 324 images, 162 of them set aside for supports: take at most 162"):
        evaluate(Copier(), data, plan_of(support_pool=0.5, shots=3, num_real_images=200))
