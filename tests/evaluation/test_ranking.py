"""Evaluations ranked: groups, intervals, training runs, landmarks, and the plane."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from lightning_vfs.evaluation.plane import BOTTOM, HEIGHT, LEFT, LEVELS, RIGHT, TOP, WIDTH, Axes, draw_plane, points_of
from lightning_vfs.evaluation.ranking import Cell, Entry, by_run, grouped, tables
from lightning_vfs.evaluation.record import EvaluationRecord

from .test_record import changed, plain

FIGURES = {
    "novel_accuracy[x]/out": (0.6, {"floor": 0.95, "copier": 0.0}),
    "few_shot_accuracy_all[x]/out": (0.85, {"floor": 0.99, "copier": 0.985, "chance": 0.005}),
    "support_affinity/out": (0.25, {"floor": 0.05, "copier": 1.0, "mean_of_support": 0.64}),
    "fid[x]/out": (15.0, {"floor": 6.5, "copier": 3.6}),
}


def values_of(shift: float = 0.0, verdict: str | None = None, spread: float = 0.02, **figures: float) -> dict[str, Any]:
    """A record whose novel_accuracy is 0.6 plus `shift`, with replicates."""
    values = plain()
    values["splits"]["out"]["verdict"] = verdict
    ticks = np.linspace(-spread, spread, 20)
    values["figures"] = {}
    for name, (value, beside) in FIGURES.items():
        short = name.split("[")[0].split("/")[0]
        value = figures.get(short, value + (shift if short == "novel_accuracy" else 0))
        empty = dict.fromkeys(plain()["figures"]["fid/out"])
        one = {"value": value, "replicates": (value + ticks).tolist(), "standard_error": spread}
        values["figures"][name] = empty | beside | one
    return values


def entry(name: str, *args: Any, run: tuple[str, str, int] | None = None, **options: Any) -> Entry:
    values = values_of(*args, **options)
    if run is not None:
        values["model"] |= dict(zip(("recipe_sha256", "run_sha256", "global_step"), run, strict=True))
    return Entry(name, (EvaluationRecord.from_dict(values),))


def test_the_best_comes_first_and_copies_have_no_rank() -> None:
    """Whatever their figures; landmarks stand apart."""
    entries = [
        entry("a"),
        entry("b", 0.2),
        entry("c", 0.9, "copies its support"),
        entry("d", -0.1),
        entry("e", math.nan),
    ]
    (group,) = grouped(entries)
    (table,) = tables(group)
    assert (table.split, table.headline) == ("out", "novel_accuracy[x]")
    assert table.columns == ("novel_accuracy[x]", "few_shot_accuracy_all[x]", "support_affinity", "fid[x]")
    assert [(row.name, row.rank) for row in table.rows] == [("b", 1), ("a", 2), ("d", 3), ("e", None), ("c", None)]
    assert table.rows[4].note == "copies its support"
    found = {row.name: [cell and cell.value for cell in row.cells] for row in table.landmarks}
    assert found == {
        "real images": [0.95, 0.99, 0.05, 6.5], "copier": [0.0, 0.985, 1.0, 3.6],
        "mean of the support": [None, None, 0.64, None], "chance": [None, 0.005, None, None],
    }  # fmt: skip


def test_by_fid_the_lowest_is_the_best() -> None:
    entries = [
        Entry(str(value), (EvaluationRecord.from_dict(changed("figures.fid/out.value", value)),)) for value in (9, 2, 5)
    ]
    (table,) = tables(*grouped(entries))
    assert table.headline == "fid" and [row.name for row in table.rows] == ["2", "5", "9"]


def test_intervals_are_students_of_the_replicates() -> None:
    (table,) = tables(*grouped([entry("a")]))
    replicates = 0.6 + np.linspace(-0.02, 0.02, 20)
    error = math.sqrt(19 / 20 * ((replicates - replicates.mean()) ** 2).sum())
    bounds = stats.t.interval(0.95, 19, 0.6, error)
    cell = table.rows[0].cells[0]
    assert cell is not None and cell.bounds == pytest.approx(bounds) and cell.value == pytest.approx(0.6)


def test_differences_from_the_best_are_paired() -> None:
    """The same classes, so what they share is not in the interval."""
    (table,) = tables(*grouped([entry("a", 0.1), entry("b")]))
    apart = table.rows[1].apart
    assert apart is not None and apart.value == pytest.approx(-0.1) and apart.bounds == pytest.approx((-0.1, -0.1))
    assert table.rows[0].apart is None


def test_records_without_replicates_have_the_intervals_of_their_errors() -> None:
    values = values_of()
    values["figures"]["novel_accuracy[x]/out"] |= {"replicates": None, "standard_error": 0.01}
    values["figures"]["fid[x]/out"] |= {"replicates": None, "standard_error": None}
    (table,) = tables(*grouped([Entry("old", (EvaluationRecord.from_dict(values),))]))
    accuracy, *_, fid = table.rows[0].cells
    assert accuracy is not None and accuracy.bounds == pytest.approx(stats.t.interval(0.95, 1, 0.6, 0.01)), "2 classes"
    assert fid == Cell(15.0)


def test_training_runs_of_a_method_are_one() -> None:
    """Of each run the latest; with an interval over runs and classes; others stay alone."""
    entries = [
        entry("a1", 0.0, run=("A", "1", 100)), entry("a1 earlier", -0.5, run=("A", "1", 50)),
        entry("a2", 0.06, run=("A", "2", 100)), entry("b", 0.3, run=("B", "3", 100)), entry("old"),
    ]  # fmt: skip
    old = changed("model.run_sha256", None, values_of(0.1))
    entries[-1] = Entry("old", (EvaluationRecord.from_dict(old),))
    joined = by_run(entries)
    assert [(each.name, len(each.records)) for each in joined] == [("a1 (2 training runs)", 2), ("b", 1), ("old", 1)]
    (table,) = tables(*grouped(joined))
    row = next(row for row in table.rows if row.name.startswith("a1"))
    assert row.cells[0] is not None and row.cells[0].value == pytest.approx(0.63)
    replicates = np.linspace(-0.02, 0.02, 20)
    jackknife, spread = 19 / 20 * (replicates**2).sum(), np.var([0.6, 0.66], ddof=1) / 2
    freedom = (jackknife + spread) ** 2 / (jackknife**2 / 19 + spread**2)
    expected = stats.t.interval(0.95, freedom, 0.63, math.sqrt(jackknife + spread))
    assert row.cells[0].bounds == pytest.approx(expected)


def test_what_is_not_comparable_stands_apart_with_its_reason() -> None:
    other = Entry("other", (EvaluationRecord.from_dict(changed("sampling.steps", 250, values_of(0.3))),))
    groups = grouped([other, entry("a"), entry("b")])
    assert [[each.name for each in group.entries] for group in groups] == [["a", "b"], ["other"]]
    assert groups[0].reasons == () and groups[1].reasons[0].startswith("steps: 50 against 250: ")
    runs = [entry("a", run=("A", "1", 1)), Entry("c", (EvaluationRecord.from_dict(changed(
        "model.run_sha256", "2", changed("model.recipe_sha256", "A", changed("sampling.steps", 250, values_of()))
    )),))]  # fmt: skip
    assert [len(each.records) for each in by_run(runs)] == [1, 1], "runs of a method by two protocols are not one"


@pytest.mark.parametrize("value", [1e300, -1e308, math.inf, math.nan, 0.0])
def test_any_number_is_ranked(value: float) -> None:
    values = values_of(novel_accuracy=value, support_affinity=value, few_shot_accuracy_all=value)
    huge = Entry("huge", (EvaluationRecord.from_dict(values),))
    (table,) = tables(*grouped([entry("a"), huge, huge]))
    assert len(table.rows) == 3 and {row.rank for row in table.rows} >= {1}
    drawn = draw_plane(table, "t")
    assert drawn is not None and not re.search(r"nan|inf|\de[+-]?\d", re.sub("<t.*?</t[a-z]*>", "", drawn))


# -- the plane --------------------------------------------------------------------------------------------------------

NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_the_plane_has_every_row_where_its_figures_are() -> None:
    (table,) = tables(*grouped([entry("a"), entry("b", 0.2, support_affinity=-0.1, few_shot_accuracy_all=0.5)]))
    drawn = draw_plane(table, "Group 1, <out>")
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    axes = Axes(points_of(table))
    circles = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in root.iter(f"{NAMESPACE}circle")]
    assert circles == [
        pytest.approx((axes.x(1.1), axes.y(0.5)), abs=0.05), pytest.approx((axes.x(0.75), axes.y(0.85)), abs=0.05)
    ]  # fmt: skip
    rects = [each for each in root.iter(f"{NAMESPACE}rect") if each.get("width") == "8"]
    places = {(float(each.get("x", "")) + 4, float(each.get("y", "")) + 4) for each in rects}
    expected = [(axes.x(0.95), axes.y(0.99)), (axes.x(0.0), axes.y(0.985))]  # of real images and the copier
    assert sorted(places) == [pytest.approx(each, abs=0.06) for each in sorted(expected)]
    texts = [each.text for each in root.iter(f"{NAMESPACE}text")]
    assert {"1", "2", "real images", "copier", "Group 1, <out>", "few_shot_accuracy_all"} <= set(texts)
    assert "chance" not in texts and "mean of the support" not in texts, "without a figure for each axis"


def test_bars_are_the_intervals() -> None:
    (table,) = tables(*grouped([entry("a")]))
    root = ElementTree.fromstring(draw_plane(table, "t") or "")
    (group,) = (g for g in root.iter(f"{NAMESPACE}g") if g.find(f"{NAMESPACE}circle") is not None)
    across, up = (path.get("d", "") for path in group.iter(f"{NAMESPACE}path"))
    axes, (point, *_) = Axes(points_of(table)), points_of(table)
    low, high = point.x.bounds or (0, 0)
    assert (low, high) == pytest.approx((0.75 - (high - 0.75), high)) and low < 0.75
    assert across == f"M{axes.x(low):.1f} {axes.y(0.85):.1f}H{axes.x(high):.1f}"
    low, high = point.y.bounds or (0, 0)
    assert up == f"M{axes.x(0.75):.1f} {axes.y(low):.1f}V{axes.y(high):.1f}"


def test_curves_are_of_equal_novel_accuracy_and_everything_is_on_the_page() -> None:
    (table,) = tables(*grouped([entry("a"), entry("b", support_affinity=-0.4)]))
    root, axes = ElementTree.fromstring(draw_plane(table, "t") or ""), Axes(points_of(table))
    curves = [
        [tuple(map(float, pair.split(","))) for pair in each.get("points", "").split()]
        for each in root.iter(f"{NAMESPACE}polyline")
    ]
    assert len(curves) == len(LEVELS)
    for level, curve in zip(LEVELS, curves, strict=True):
        for x, y in curve:
            value = axes.low + (x - LEFT) / (WIDTH - LEFT - RIGHT) * (axes.high - axes.low)
            assert value * (1.05 - (y - TOP) / (HEIGHT - TOP - BOTTOM) * 1.05) == pytest.approx(level, abs=0.01)
            assert LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM
    assert axes.x(0) < axes.x(1) < axes.x(1.4) < WIDTH - RIGHT and axes.y(0) == HEIGHT - BOTTOM


def test_without_the_two_figures_there_is_no_plane() -> None:
    record = EvaluationRecord.from_dict(plain())
    (table,) = tables(*grouped([Entry("a", (record,))]))
    assert draw_plane(table, "t") is None
