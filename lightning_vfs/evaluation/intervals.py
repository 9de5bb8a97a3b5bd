"""How sure a figure is: the delete-a-group jackknife over classes, and differences of figures.

A figure carries its replicates, its value without each group of classes in turn (Kott 2001, "The delete-a-group
jackknife"). The same class is in the same group in every evaluation, so that replicates of two models are paired.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

GROUPS = 20
"""Groups that classes are dealt into."""
FEW_GROUPS = 8
"""Groups below which an interval says little."""
ROUNDING = 1e-12
"""Share of a figure below which a standard error is nothing but rounding."""
LEVEL = 0.95
"""Of intervals, unless asked otherwise."""

Verdict = Literal["higher", "lower", "no difference", "undecided"]


def deal(names: Sequence[str], groups: int = GROUPS) -> np.ndarray:
    """Group of each class, int64 (classes,), from 0: in the order of their names' SHA-256, one after the other.

    There are as many groups as classes if these are fewer. Equal names are told apart by their order.
    """
    digests = [hashlib.sha256(name.encode(errors="surrogatepass")).digest() for name in names]
    dealt = np.empty(len(names), dtype=np.int64)
    dealt[sorted(range(len(names)), key=digests.__getitem__)] = np.arange(len(names)) % max(1, groups)
    return dealt


def standard_error(replicates: Sequence[float]) -> float:
    """sqrt((G - 1) / G sum (f_g - mean)^2) of G replicates; NaN for fewer than 2, or if one is not finite."""
    found = np.asarray(replicates, dtype=np.float64)
    if len(found) < 2 or not np.isfinite(found).all():
        return math.nan
    error = float(np.sqrt((len(found) - 1) * found.var()))
    return error if error > ROUNDING * np.abs(found).max() else 0.0


def interval(value: float, error: float, freedom: float, level: float = LEVEL) -> tuple[float, float]:
    """Bounds of Student's t interval around a value.

    Args:
        value: the estimate.
        error: its standard error.
        freedom: degrees of freedom, G - 1 for a jackknife of G replicates; need not be whole.
        level: probability that it covers.
    """
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    return value - half, value + half


class Run(NamedTuple):
    """A figure of one training run: its value and replicates."""

    value: float
    replicates: Sequence[float]


class Difference(NamedTuple):
    """Of a figure between two sides, second - first.

    Attributes:
        value: difference of the sides' means.
        error: its standard error.
        freedom: degrees of freedom of that error.
    """

    value: float
    error: float
    freedom: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Bounds of the difference."""
        return interval(self.value, self.error, self.freedom, level)

    def verdict(self, margin: float) -> Verdict:
        """`higher` or `lower` where the 95% interval leaves out 0; what remains is undecided, or no difference.

        Args:
            margin: `no difference` is only where the 90% interval lies within this distance of 0 (two one-sided tests,
                Schuirmann 1987).
        """
        low, high = self.interval()
        if low > 0:
            return "higher"
        if high < 0:
            return "lower"
        low, high = self.interval(0.90)
        return "no difference" if -margin < low and high < margin else "undecided"


def difference(first: Sequence[Run], second: Sequence[Run]) -> Difference | None:
    """Difference of a figure between two sides of one or more training runs each, evaluated on the same classes.

    With one run a side, the paired jackknife: the replicates' differences, of G - 1 degrees of freedom. With several,
    its square for the sides' means, plus s_a^2 / n_a + s_b^2 / n_b of the runs' values, with Welch's degrees of
    freedom. A side of one run is taken to vary from training to training as the other side does.

    Returns:
        None where replicates do not pair, or a number is not finite.
    """
    runs = [*first, *second]
    groups = {len(run.replicates) for run in runs}
    if not first or not second or len(groups) != 1 or max(groups) < 2:
        return None
    means = [np.mean([run.replicates for run in side], axis=0) for side in (first, second)]
    values = [np.asarray([run.value for run in side]) for side in (first, second)]
    found = float(values[1].mean() - values[0].mean())
    parts = [(standard_error(means[1] - means[0]) ** 2, max(groups) - 1)]
    sizes, spreads = [len(side) for side in values], [side.var(ddof=1) if len(side) > 1 else 0.0 for side in values]
    if min(sizes) > 1:
        parts += [(spread / size, size - 1) for spread, size in zip(spreads, sizes, strict=True)]
    elif max(sizes) > 1:
        parts += [(sum(spreads) * (1 + 1 / max(sizes)), max(sizes) - 1)]
    variance = sum(part for part, _ in parts)
    if not (math.isfinite(found) and math.isfinite(variance)):
        return None
    below = sum(part**2 / freedom for part, freedom in parts)
    return Difference(found, math.sqrt(variance), variance**2 / below if below else float(max(groups) - 1))
