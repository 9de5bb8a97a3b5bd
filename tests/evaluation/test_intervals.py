"""Intervals of figures: against closed forms, scipy's tests, and the share of simulated intervals that cover."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from lightning_vfs.evaluation.intervals import Difference, Run, deal, difference, interval, standard_error

pytestmark = pytest.mark.numeric


def leave_out(values: np.ndarray) -> list[float]:
    """Mean of the others, without each value in turn."""
    return [float(np.delete(values, i).mean()) for i in range(len(values))]


def test_a_class_is_in_the_same_group_whatever_the_order() -> None:
    names = [f"class {i}" for i in range(205)]
    groups = dict(zip(names, deal(names).tolist(), strict=True))
    assert groups == dict(zip(names[::-1], deal(names[::-1]).tolist(), strict=True))
    assert sorted(np.bincount(deal(names)).tolist()) == [10] * 15 + [11] * 5
    assert deal(["a", "b", "c"]).tolist() == [2, 1, 0], "by SHA-256: c, b, a"
    assert deal([]).tolist() == [] and deal(["\udce9", "é"]).tolist() in ([0, 1], [1, 0])


def test_fewer_classes_are_as_many_groups() -> None:
    assert sorted(deal([f"{i}" for i in range(7)]).tolist()) == list(range(7))
    assert sorted(deal(["a", "a", "a"]).tolist()) == [0, 1, 2]


def test_the_error_of_a_mean_is_the_known_one() -> None:
    values = np.random.default_rng(0).normal(size=20)
    assert standard_error(leave_out(values)) == pytest.approx(stats.sem(values), rel=1e-9)
    assert standard_error([-0.05263, -0.05263 + 1e-17, -0.05263 - 7e-18]) == standard_error([0.0, 0.0]) == 0
    assert math.isnan(standard_error([1.0])) and math.isnan(standard_error([1.0, math.nan, 2.0]))


@pytest.mark.parametrize("freedom", [1, 2.5, 19, 1000])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_bounds_are_those_of_students_t(freedom: float, level: float) -> None:
    assert interval(3, 0.5, freedom, level) == pytest.approx(stats.t.interval(level, freedom, 3, 0.5), rel=1e-9)


def test_one_run_a_side_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    classes = rng.normal(size=20)
    one, other = classes + 0.1 * rng.normal(size=20), classes + 0.3 + 0.1 * rng.normal(size=20)
    found = difference(*([Run(side.mean(), leave_out(side))] for side in (one, other)))
    assert found is not None
    expected = stats.ttest_rel(other, one).confidence_interval()
    assert found.interval() == pytest.approx(expected, rel=1e-9)
    assert found.freedom == 19 and found.verdict(0.01) == "higher"
    assert found.error < 0.2 * math.hypot(stats.sem(one), stats.sem(other)), "pairing takes the classes out"


def test_runs_whose_evaluation_is_exact_are_welchs_t_test() -> None:
    first, second = [4.0, 5.0, 4.5], [6.0, 8.0, 7.5, 9.0]
    found = difference(*([Run(value, [value] * 20) for value in side] for side in (first, second)))
    assert found is not None
    expected = stats.ttest_ind(second, first, equal_var=False)
    assert found.interval() == pytest.approx(expected.confidence_interval(), rel=1e-9)
    assert found.freedom == pytest.approx(expected.df)


def test_a_single_run_varies_as_those_of_the_other_side() -> None:
    found = difference([Run(1.0, [1.0] * 20)], [Run(value, [value] * 20) for value in (2.0, 3.0, 4.0)])
    assert found == pytest.approx(Difference(2.0, math.sqrt(1 + 1 / 3), 2.0))


def test_both_kinds_of_error_add_up() -> None:
    rng = np.random.default_rng(0)
    sides = [[Run(x.mean(), leave_out(x)) for x in rng.normal(size=(2, 20))] for _ in range(2)]
    found = difference(*sides)
    assert found is not None
    paired = np.mean([r.replicates for r in sides[1]], axis=0) - np.mean([r.replicates for r in sides[0]], axis=0)
    training = sum(np.var([run.value for run in side], ddof=1) / 2 for side in sides)
    assert found.error**2 == pytest.approx(standard_error(paired) ** 2 + training)
    assert 1 < found.freedom < 21


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([], [Run(1, [1, 2])]),
        ([Run(1, [1, 2, 3])], [Run(1, [1, 2])]),
        ([Run(1, [1])], [Run(1, [2])]),
        ([Run(math.nan, [1, 2])], [Run(1, [1, 2])]),
        ([Run(1, [1, math.nan])], [Run(1, [1, 2])]),
    ],
)
def test_what_does_not_pair_has_no_interval(first: list[Run], second: list[Run]) -> None:
    assert difference(first, second) is None


@pytest.mark.parametrize(
    ("value", "error", "margin", "verdict"),
    [
        (0.1, 0.01, 0.5, "higher"),
        (-0.1, 0.01, 0.5, "lower"),
        (0.01, 0.01, 0.05, "no difference"),
        (0.01, 0.01, 0.025, "undecided"),
        (-0.01, 0.01, 0.025, "undecided"),
        (0.0, 0.0, 0.01, "no difference"),
        (0.0, 0.0, 0.0, "undecided"),
    ],
)
def test_no_difference_has_to_be_shown(value: float, error: float, margin: float, verdict: str) -> None:
    assert Difference(value, error, 19).verdict(margin) == verdict


def test_intervals_of_clustered_hits_cover() -> None:
    """Of 400 splits of 100 classes whose accuracies differ; within three standard errors of 95%."""
    rng, covered = np.random.default_rng(0), 0
    groups = deal([f"{i}" for i in range(100)])
    for _ in range(400):
        hits = rng.binomial(5, rng.beta(8, 2, 100))
        replicates = [hits[groups != g].mean() / 5 for g in range(20)]
        low, high = interval(hits.mean() / 5, standard_error(replicates), 19)
        covered += low <= 0.8 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_torch_is_not_needed() -> None:
    code = "import sys, lightning_vfs.evaluation.intervals as i; i.interval(0, 1, 19); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
