"""Evaluations ranked: which of them are comparable, and how their figures stand, with intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_vfs.evaluation.comparison import compare
from lightning_vfs.evaluation.intervals import Run, difference, interval, standard_error
from lightning_vfs.evaluation.record import EvaluationRecord, Figure

HIGHER_IS_BETTER = {
    "novel_accuracy": True,
    "few_shot_accuracy_all": True,
    "few_shot_accuracy": True,
    "support_affinity": False,
    "copy_rate": False,
    "train_copy_rate": False,
    "diversity": None,
    "diversity_pixels": None,
    "lpips": None,
    "fid": False,
    "kid": False,
    "isc": True,
    "precision": True,
    "recall": True,
    "novel_precision": True,
    "novel_recall": True,
    "vlb": False,
}
"""Figures of a table, in this order; None where neither a high nor a low value is the better one."""

HEADLINES = ("novel_accuracy", "few_shot_accuracy_all", "few_shot_accuracy", "fid", "kid", "vlb")
"""Figures to rank by: the first that all records of a group have."""

LANDMARKS = {
    "real images": "floor",
    "copier": "copier",
    "mean of the support": "mean_of_support",
    "that mean, jittered": "jittered_mean",
    "chance": "chance",
}
"""What a table shows beside the models, by the field of a figure."""


class Entry(NamedTuple):
    """What is ranked.

    Attributes:
        name: for people.
        records: one evaluation, or those of several training runs of a method.
    """

    name: str
    records: tuple[EvaluationRecord, ...]

    @property
    def verdicts(self) -> dict[str, str]:
        """What it copies, in words, by split."""
        return {name: of.verdict for record in self.records for name, of in record.splits.items() if of.verdict}


class Group(NamedTuple):
    """Entries that are all comparable with each other.

    Attributes:
        entries: at least one.
        reasons: why they are not comparable with the first group; none for the first.
    """

    entries: tuple[Entry, ...]
    reasons: tuple[str, ...]

    @property
    def record(self) -> EvaluationRecord:
        """The first one: what it states of data and protocol holds for all."""
        return self.entries[0].records[0]


class Cell(NamedTuple):
    """A figure of an entry: its value, and the bounds of its 95% interval, if they are known."""

    value: float
    bounds: tuple[float, float] | None = None


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        name: of the entry, or of a landmark.
        rank: from 1; None for landmarks, for what copies, and where the headline is not finite.
        cells: by column; None where there is no such figure.
        apart: of the headline, from that of rank 1: value and paired 95% interval, and whether that leaves out 0.
        note: what else a reader must know.
    """

    name: str
    rank: int | None
    cells: tuple[Cell | None, ...]
    apart: Cell | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """The figures of a group on one split.

    Attributes:
        split: `in` or `out`.
        headline: the figure that is ranked by, one of `columns`.
        columns: names of figures, without the split.
        rows: entries by rank, then those without one.
        landmarks: rows of real images, copiers and so on.
    """

    split: str
    headline: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    landmarks: tuple[Row, ...]

    def cell(self, row: Row, figure: str) -> Cell | None:
        """A row's value of the figure with this name, whatever extractor its column names."""
        found = (cell for name, cell in zip(self.columns, row.cells, strict=True) if _base(name) == figure)
        return next(found, None)


def grouped(entries: Sequence[Entry]) -> list[Group]:
    """Entries in groups that are comparable throughout, the largest first, each with the reasons why it is apart."""
    members: list[list[Entry]] = []
    for entry in entries:
        for group in members:
            if all(compare(other.records[0], entry.records[0]).comparable for other in group):
                group.append(entry)
                break
        else:
            members.append([entry])
    members.sort(key=len, reverse=True)
    first = members[0][0].records[0] if members else None
    return [
        Group(tuple(group), () if i == 0 or first is None else _reasons(first, group))
        for i, group in enumerate(members)
    ]


def _reasons(first: EvaluationRecord, group: Sequence[Entry]) -> tuple[str, ...]:
    reasons = compare(first, group[0].records[0]).reasons
    return tuple(reasons) or ("comparable with some records of group 1, but not with all",)


def by_run(entries: Sequence[Entry]) -> list[Entry]:
    """Records of one method's training runs, which differ in their seeds, as one entry; of each run the latest.

    Only what is comparable is joined; records that do not name their run stay alone.
    """
    latest: dict[str, Entry] = {}
    alone: list[Entry] = []
    for entry in entries:
        model = entry.records[0].model
        if model.run_sha256 is None or model.recipe_sha256 is None:
            alone.append(entry)
            continue
        there = latest.get(model.run_sha256)
        if there is None or (model.global_step or 0) > (there.records[0].model.global_step or 0):
            latest[model.run_sha256] = entry
    methods: dict[str, list[Entry]] = {}
    for entry in latest.values():
        methods.setdefault(entry.records[0].model.recipe_sha256 or "", []).append(entry)
    joined = []
    for runs in methods.values():
        for group in grouped(runs):
            records = tuple(record for entry in group.entries for record in entry.records)
            several = f" ({len(records)} training runs)" if len(records) > 1 else ""
            joined.append(Entry(group.entries[0].name + several, records))
    return joined + alone


def tables(group: Group) -> list[Table]:
    """A table for every split of a group that has a figure to rank by, `out` first."""
    splits = {_split(name) for entry in group.entries for record in entry.records for name in record.figures}
    found = (_table(group, split) for split in sorted(splits - {""}, reverse=True))
    return [table for table in found if table is not None]


def _table(group: Group, split: str) -> Table | None:
    names = dict.fromkeys(
        name
        for entry in group.entries
        for record in entry.records
        for name in record.figures
        if _split(name) == split and _base(name) in HIGHER_IS_BETTER
    )
    order = list(HIGHER_IS_BETTER)
    columns = sorted(names, key=lambda name: (order.index(_base(name)), name))
    headline = next(
        (
            name
            for base in HEADLINES
            for name in columns
            if _base(name) == base and all(_of(entry, name) for entry in group.entries)
        ),
        None,
    )
    if headline is None:
        return None
    sign = 1 if HIGHER_IS_BETTER[_base(headline)] else -1
    cells = {i: tuple(_cell(entry, name, split) for name in columns) for i, entry in enumerate(group.entries)}
    at = columns.index(headline)

    def place(i: int) -> tuple[bool, bool, float]:
        cell = cells[i][at]
        value = math.nan if cell is None else cell.value
        return split in group.entries[i].verdicts, not math.isfinite(value), -sign * (value if value == value else 0)

    rows: list[Row] = []
    order_of_rows = sorted(range(len(group.entries)), key=place)
    best = group.entries[order_of_rows[0]]
    for i in order_of_rows:
        entry, (copies, broken, _) = group.entries[i], place(i)
        rank = None if copies or broken else len(rows) + 1
        apart = None if rank in (None, 1) else _apart(best, entry, headline)
        rows.append(Row(entry.name, rank, cells[i], apart, entry.verdicts.get(split, "")))
    landmarks = (_landmark(group, name, field, columns) for name, field in LANDMARKS.items())
    return Table(
        split,
        headline.removesuffix(f"/{split}"),
        tuple(name.removesuffix(f"/{split}") for name in columns),
        tuple(rows),
        tuple(row for row in landmarks if any(row.cells)),
    )


def _landmark(group: Group, name: str, field: str, columns: Iterable[str]) -> Row:
    """That of the first record that has it: comparable records have the same real images."""
    figures = [figure for entry in group.entries for record in entry.records for figure in [record.figures]]
    values = (next((v for f in figures if (v := _value(f, column, field)) is not None), None) for column in columns)
    return Row(name, None, tuple(None if value is None else Cell(value) for value in values))


def _value(figures: Mapping[str, Figure], column: str, field: str) -> float | None:
    return getattr(figures[column], field) if column in figures else None


def _of(entry: Entry, name: str) -> list[Figure]:
    """The figure of every record of an entry; none if one lacks it."""
    found = [record.figures[name] for record in entry.records if name in record.figures]
    return found if len(found) == len(entry.records) else []


def _cell(entry: Entry, name: str, split: str) -> Cell | None:
    figures = _of(entry, name)
    if not figures:
        return None
    values = [figure.value for figure in figures]
    with np.errstate(all="ignore"):
        value = float(np.mean(values))
        try:
            bounds = _bounds(entry, figures, value, split)
        except OverflowError:
            bounds = None
    return Cell(value, bounds if bounds and all(map(math.isfinite, bounds)) else None)


def _bounds(entry: Entry, figures: Sequence[Figure], value: float, split: str) -> tuple[float, float] | None:
    """Of one record by its classes; of several training runs also by how these vary, as in `intervals.difference`."""
    replicates = [figure.replicates or () for figure in figures]
    groups = {len(each) for each in replicates}
    if len(groups) == 1 and max(groups) > 1:
        error, freedom = standard_error(np.mean(replicates, axis=0).tolist()), max(groups) - 1
    else:
        of = entry.records[0].splits.get(split)
        errors = [figure.standard_error for figure in figures]
        if of is None or len(of.classes) < 2 or None in errors:
            return None
        error, freedom = max(each for each in errors if each is not None), len(of.classes) - 1
    if not math.isfinite(error) or not math.isfinite(value):
        return None
    parts = [(error**2, freedom)]
    if len(figures) > 1:
        values = np.array([figure.value for figure in figures])
        parts.append((float(values.var(ddof=1)) / len(values), len(values) - 1))
    variance = sum(part for part, _ in parts)
    below = sum(part**2 / free for part, free in parts)
    return interval(value, math.sqrt(variance), variance**2 / below if below else freedom)


def _apart(best: Entry, entry: Entry, name: str) -> Cell | None:
    """Difference of an entry from the best, with its paired interval, where there are replicates of both."""
    sides = [[Run(f.value, f.replicates or ()) for f in _of(each, name)] for each in (best, entry)]
    with np.errstate(all="ignore"):
        try:
            found = difference(*sides)
            bounds = None if found is None else found.interval()
        except OverflowError:
            return None
    if found is None or bounds is None or not all(map(math.isfinite, bounds)):
        return None
    return Cell(found.value, bounds)


def _base(name: str) -> str:
    """The kind of a figure: `fid` of `fid[glyph-cnn]/out`."""
    found = re.fullmatch(r"([a-z_]+?)(_\d+)?(\[[^\]]*\])?(/(in|out))?", name)
    return found[1] if found else ""


def _split(name: str) -> str:
    found = re.search(r"/(in|out)$", name)
    return found[1] if found else ""
