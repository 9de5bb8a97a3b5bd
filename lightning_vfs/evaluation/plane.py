"""Novelty against accuracy as a picture: where copies, blends and models that know the class stand. SVG, by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from lightning_vfs.evaluation.board import plain
from lightning_vfs.evaluation.ranking import Cell, Table

WIDTH, HEIGHT = 640, 480
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 50
LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Values of novel_accuracy whose curves are drawn."""
MODEL, LANDMARK, CURVE, AXIS = "#1f5fa8", "#777777", "#c9a227", "#222222"


class Point(NamedTuple):
    """A model or a landmark on the plane.

    Attributes:
        label: short, beside the point.
        title: name in full, shown on hovering.
        x: 1 - support_affinity, with bounds.
        y: few_shot_accuracy_all, with bounds.
        is_model: whether it is a model and no landmark.
    """

    label: str
    title: str
    x: Cell
    y: Cell
    is_model: bool


def points_of(table: Table) -> list[Point]:
    """Rows of a table that have both figures, finite: models by their number, landmarks by their name."""
    found = []
    for number, row in enumerate((*table.rows, *table.landmarks), start=1):
        affinity, accuracy = table.cell(row, "support_affinity"), table.cell(row, "few_shot_accuracy_all")
        is_model = number <= len(table.rows)
        if affinity is None or accuracy is None or row.name == "chance":
            continue
        low, high = affinity.bounds or (None, None)
        novelty = Cell(1 - affinity.value, None if low is None or high is None else (1 - high, 1 - low))
        if all(math.isfinite(value) and abs(value) < 100 for value in (novelty.value, accuracy.value)):
            found.append(Point(str(number) if is_model else row.name, row.name, novelty, accuracy, is_model))
    return found


class Axes:
    """From values to pixels: y from 0 to 1, x from at most 0 to at least 1, as far as the points go.

    Args:
        points: what has to have room.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.low = min(0.0, *(point.x.value for point in points)) - 0.05
        self.high = max(1.0, *(point.x.value for point in points)) + 0.1

    def x(self, value: float) -> float:
        """Pixels from the left; values outside of the axis are at its ends."""
        value = min(max(value, self.low), self.high)
        return LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return TOP + (1.05 - min(max(value, 0.0), 1.05)) / 1.05 * (HEIGHT - TOP - BOTTOM)


def draw_plane(table: Table, title: str) -> str | None:
    """The plane of a table as an SVG element of 640 x 480; None without a model that has both figures.

    Novel_accuracy is accuracy times novelty where the two are independent: its curves are hyperbolas.
    """
    points = points_of(table)
    if not any(point.is_model for point in points):
        return None
    axes = Axes(points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, AXIS, "middle"),
        *_curves(axes),
        *_frame(axes),
        *(part for point in sorted(points, key=lambda point: point.is_model) for part in _point(axes, point)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _curves(axes: Axes) -> Iterable[str]:
    for level in LEVELS:
        steps = 60
        start = level / 1.05
        xs = [start + (axes.high - start) * i / steps for i in range(steps + 1)]
        path = " ".join(f"{axes.x(x):.1f},{axes.y(level / x):.1f}" for x in xs)
        yield f'<polyline points="{path}" fill="none" stroke="{CURVE}" stroke-dasharray="4 3"/>'
        yield _text(axes.x(axes.high) - 2, axes.y(level / axes.high) - 4, f"{level:g}", CURVE, "end")


def _frame(axes: Axes) -> Iterable[str]:
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    yield f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{AXIS}"/>'
    for i in range(6):
        value = i / 5
        x, y = axes.x(value), axes.y(value)
        yield f'<path d="M{x:.1f} {bottom}v5M{left} {y:.1f}h-5" stroke="{AXIS}"/>'
        yield _text(x, bottom + 18, f"{value:g}", AXIS, "middle")
        yield _text(left - 8, y + 4, f"{value:g}", AXIS, "end")
    yield _text(
        (left + right) / 2, HEIGHT - 12, "novelty: 1 - support_affinity (copies 0, real images 1)", AXIS, "middle"
    )
    turned = f'transform="rotate(-90 16 {(top + bottom) / 2:.0f})"'
    yield _text(16, (top + bottom) / 2, "few_shot_accuracy_all", AXIS, "middle", turned)
    yield _text(right, top - 6, "curves: novel_accuracy", CURVE, "end")


def _point(axes: Axes, point: Point) -> Iterable[str]:
    colour = MODEL if point.is_model else LANDMARK
    x, y = axes.x(point.x.value), axes.y(point.y.value)
    shown = f"{point.title}: novelty {point.x.value:.3g}, accuracy {point.y.value:.3g}"
    yield f'<g stroke="{colour}" fill="{colour}"><title>{escape(plain(shown))}</title>'
    if point.x.bounds:
        low, high = map(axes.x, point.x.bounds)
        yield f'<path d="M{low:.1f} {y:.1f}H{high:.1f}"/>'
    if point.y.bounds:
        low, high = map(axes.y, point.y.bounds)
        yield f'<path d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
    if point.is_model:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    else:
        yield f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="white"/>'
    yield "</g>"
    near_edge, below = x > WIDTH - 120, 0 if point.is_model else 22  # where a model stands on a landmark, both are read
    yield _text(x - 7 if near_edge else x + 7, y - 7 + below, point.label, colour, "end" if near_edge else "start")


def _text(x: float, y: float, text: str, colour: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" {more}>{escape(plain(text))}</text>'
