"""Differences of the figures of comparable records, with intervals and a verdict on each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.evaluation.intervals import FEW_GROUPS, Difference, Run, difference, standard_error
from lightning_vfs.evaluation.record import EvaluationRecord, Figure

MARGINS: dict[str, tuple[float, float]] = {
    "few_shot_accuracy": (0.02, 0.0),
    "precision": (0.02, 0.0),
    "recall": (0.02, 0.0),
    "copy_rate": (0.02, 0.0),
    "support_affinity": (0.05, 0.0),
    "novel_accuracy": (0.05, 0.0),
    "diversity": (0.05, 0.0),
}
"""Differences that do not matter, by the name that a figure's contains: absolute, and as a share of the first value."""
OTHER_MARGIN = (0.0, 0.1)
"""That of other figures: FID, KID, the Inception score, the bound."""
FEW_ERRORS = 20
"""Wrong images of an accuracy below which its interval is too narrow."""


class FigureDifference(NamedTuple):
    """A figure on two sides.

    Attributes:
        values: mean of each side's records; None for a side without the figure.
        errors: standard error of each; None where it is not known.
        difference: second - first; None where there is no interval.
        verdict: of the difference; None without one.
    """

    values: tuple[float | None, float | None]
    errors: tuple[float | None, float | None]
    difference: Difference | None
    verdict: str | None


def base_name(figure: str) -> str:
    """`fid` of `fid[glyph-cnn]/out`."""
    return figure.split("/")[0].split("[")[0]


def margin_of(figure: str, first: float, margins: Mapping[str, float] = {}) -> float:
    """Difference of a figure that does not matter.

    Args:
        figure: as records name it.
        first: its value on the first side.
        margins: absolute ones by name, with or without extractor and split; `""` is that of all others.
    """
    for name in (figure, base_name(figure), ""):
        if name in margins:
            return margins[name]
    fixed, relative = next((m for name, m in MARGINS.items() if name in base_name(figure)), OTHER_MARGIN)
    return fixed + relative * abs(first)


def margins_of(texts: Sequence[str]) -> dict[str, float]:
    """Margins from `0.02`, for all figures, or `fid=1.5`.

    Raises:
        EvaluationError: another text, or a number that is not positive.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if not found[name] > 0 or math.isinf(found[name]) or text.startswith("="):
            raise EvaluationError(
                f"margin is {text!r}; it must be a number above 0, for all figures, or have a name, such as fid=1.5."
            )
    return found


def differences(
    first: Sequence[EvaluationRecord], second: Sequence[EvaluationRecord], margins: Mapping[str, float] = {}
) -> dict[str, FigureDifference]:
    """Every figure by name, in the order of the records, first side first.

    Args:
        first: of one or more training runs, comparable with each other and with the second side.
        second: likewise.
        margins: as `margin_of` takes them.
    """
    names = dict.fromkeys(name for record in (*first, *second) for name in record.figures)
    return {name: _difference(name, first, second, margins) for name in names}


def _difference(
    name: str,
    first: Sequence[EvaluationRecord],
    second: Sequence[EvaluationRecord],
    margins: Mapping[str, float],
) -> FigureDifference:
    sides = [[record.figures[name] for record in side if name in record.figures] for side in (first, second)]
    (x, error_x), (y, error_y) = (_side(figures) for figures in sides)
    found = None
    # A side's mean is that of all its runs.
    if all(len(figures) == len(side) for figures, side in zip(sides, (first, second), strict=True)):
        runs = [[Run(figure.value, figure.replicates or ()) for figure in figures] for figures in sides]
        found = difference(*runs)
    verdict: str | None = None
    if found is not None and x is not None:
        verdict = found.verdict(margin_of(name, x, margins))
        if any(_few_errors(name, record) for record in (*first, *second)):
            verdict += ", too few errors"
    return FigureDifference((x, y), (error_x, error_y), found, verdict)


def _side(figures: Sequence[Figure]) -> tuple[float | None, float | None]:
    """Mean of a side's values, and its standard error over classes and training runs."""
    if not figures:
        return None, None
    if len(figures) == 1:
        return figures[0].value, figures[0].standard_error
    values = [figure.value for figure in figures]
    several = [figure.replicates for figure in figures if figure.replicates]
    if len(several) < len(figures) or len({len(each) for each in several}) > 1:
        return float(np.mean(values)), None
    of_classes = standard_error([float(mean) for mean in np.mean(several, axis=0)])
    return float(np.mean(values)), math.hypot(of_classes, float(np.std(values, ddof=1)) / math.sqrt(len(values)))


def _few_errors(name: str, record: EvaluationRecord) -> bool:
    split = record.splits.get(name.split("/")[-1])
    if not base_name(name).startswith("few_shot_accuracy") or split is None or split.num_images is None:
        return False
    return (1 - record.figures[name].value) * split.num_images < FEW_ERRORS


def cautions(records: Sequence[EvaluationRecord]) -> list[str]:
    """What to bear in mind with the intervals of these records, a line for each split."""
    lines = {}
    for split, record in ((split, each) for one in records for split, each in one.splits.items()):
        if record.groups is None:
            continue
        classes = sum(count > 0 for count in record.generated_per_class.values())
        if classes <= 3:
            what = "this one class" if classes == 1 else f"these {classes} classes"
            lines[split] = f"{split}: intervals are for {what} alone: groups are of episodes, not of classes"
        elif record.groups < FEW_GROUPS:
            lines[split] = f"{split}: intervals of {record.groups} groups of classes say little"
    return list(lines.values())
