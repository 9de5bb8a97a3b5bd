"""Whether two evaluations are comparable, read off what each field of their records is to a comparison."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any, NamedTuple, get_type_hints

from lightning_vfs.evaluation.record import Compared, EvaluationRecord, Reason, Remark


class Comparison(NamedTuple):
    """Why two records are not comparable, and what else differs: one line each."""

    reasons: list[str]
    remarks: list[str]

    @property
    def comparable(self) -> bool:
        return not self.reasons


def compare(first: EvaluationRecord, second: EvaluationRecord) -> Comparison:
    """Whether the figures of two evaluations say which model is better, or differ by how they were evaluated.

    Lines name the field, both values, and what the difference does to the figures. Only what both records have is
    compared; figures that only one of them has are a remark, or a reason if they share none.
    """
    found = Comparison([], [])
    if alone := _one_sided(first.figures, second.figures):
        shared = first.figures.keys() & second.figures.keys()
        lines, effect = (found.remarks, "not compared") if shared else (found.reasons, "there is no figure to compare")
        lines.append(f"figures: {alone}: {effect}")
    for kind, name, difference in _differences(first, second):
        lines = found.reasons if isinstance(kind, Reason) else found.remarks
        lines.append(f"{name}: {difference}: {kind.effect}")
    return found


def _differences(a: Any, b: Any, of: str = "") -> Iterator[tuple[Reason | Remark, str, str]]:
    """Kind, name and difference of every field that is not the same in both, except the figures."""
    part: Any = type(a)
    for name, hint in _hints(part).items():
        x, y = getattr(a, name), getattr(b, name)
        if is_dataclass(hint):
            yield from _differences(x, y)
        elif name in ("splits", "likelihood"):
            for split in x:
                if split in y:
                    yield from _differences(x[split], y[split], f" of split {split}")
        elif name != "figures":
            (kind,) = hint.__metadata__
            left_out = isinstance(kind, Compared) or (isinstance(kind, Reason) and kind.option and None in (x, y))
            if x != y and not left_out and (difference := _difference(x, y)):
                yield kind, name + of, difference


@cache
def _hints(part: Hashable) -> dict[str, Any]:
    """Types of a dataclass's fields: many records are compared with each other."""
    return get_type_hints(part, include_extras=True)


def _difference(x: Any, y: Any) -> str:
    """Both values of a field, in words; empty for dictionaries that differ only in what one of them lacks."""
    if isinstance(x, dict):
        return _few([f"{key} {_shown(x[key])} against {_shown(y[key])}" for key in x if key in y and x[key] != y[key]])
    if isinstance(x, tuple) and all(isinstance(value, str) for value in x):
        return _one_sided(x, y) or "the same in another order"
    return f"{_shown(x)} against {_shown(y)}"


def _one_sided(x: Collection[str], y: Collection[str]) -> str:
    """What only one of two collections has; empty if there is nothing."""
    in_x, in_y = set(x), set(y)
    sides = {"first": [name for name in x if name not in in_y], "second": [name for name in y if name not in in_x]}
    return "; ".join(f"only the {side} has {_few(names)}" for side, names in sides.items() if names)


def _few(texts: list[str], limit: int = 5) -> str:
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit:,} more" if len(texts) > limit else "")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    return f"{value:,}" if type(value) is int else str(value)
