"""Rankings as pages, in Markdown and HTML, where names from records are text and nothing else."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lightning_vfs.evaluation.ranking import Cell, Entry, Group, Row, Table

MARK = "<!-- written by lightning-vfs leaderboard -->"
"""In the first lines of every page and picture, by which they are known and may be replaced."""
LONGEST = 500
"""Characters of a name, or of a line from a record."""
MOST_REASONS = 5
"""Reasons that are listed."""
STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right;white-space:nowrap}"
    "td:nth-child(2),th:nth-child(2){text-align:left}"
    ".landmark{color:#777}.verdict{color:#a00}"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a page may load: nothing."""


class Section(NamedTuple):
    """A group, its tables, and for each of them its picture (a file's name, or an SVG element), if there is one."""

    group: Group
    tables: Sequence[Table]
    pictures: Sequence[str | None]


# -- names and numbers ------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """One line of printable text, of a length that people read; other characters by their escapes."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: LONGEST + 1])
    return shown if len(text) <= LONGEST else f"{shown[:LONGEST]}..."


def in_markdown(text: str) -> str:
    """Text that Markdown shows as it is, also in a cell of a table."""
    escaped = re.sub(r"[\\`*\[\]#|~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", plain(text))
    return html.escape(escaped, quote=False).replace("://", "&#58;//")


def in_html(text: str) -> str:
    """Text that HTML shows as it is."""
    return html.escape(plain(text))


def shown(cell: Cell | None) -> str:
    """A figure such as `0.627 (0.56 to 0.69)`."""
    if cell is None:
        return "-"
    bounds = f" ({cell.bounds[0]:.4g} to {cell.bounds[1]:.4g})" if cell.bounds else ""
    return (f"{cell.value:.4g}" if math.isfinite(cell.value) else "not finite") + bounds


# -- what is said -----------------------------------------------------------------------------------------------------


def protocol(group: Group) -> list[str]:
    """Data and protocol of a group, which all of its records share."""
    record, sampling = group.record, group.record.sampling
    parts = [f"Data: {record.data.dataset}, {record.data.image_size} x {record.data.image_size} pixels"]
    for name, split in record.splits.items():
        made = "" if split.num_images is None else f" {split.num_images:,} generated and"
        parts.append(f"{name}: {len(split.classes):,} classes,{made} {split.num_real_images:,} real images")
    shots = "no support" if sampling.shots is None else f"supports of {sampling.shots}"
    aside = "" if sampling.support_pool is None else f" out of {sampling.support_pool:g} of each class, set aside"
    parts.append(f"{sampling.sampler} in {sampling.steps:,} steps, {shots}{aside}, seed {sampling.seed}")
    parts.append(f"{record.model.weights} weights; features of {record.features.extractor or 'no extractor'}")
    return parts


def verdicts(group: Group) -> list[str]:
    """What stands above the tables of a group: who copies, in the words of its record."""
    lines = (f"{e.name}, {line}" for e in group.entries for record in e.records for line in record.verdicts)
    return list(dict.fromkeys(lines))


def reasons(group: Group) -> list[str]:
    """Why a group is apart from the first."""
    more = len(group.reasons) - MOST_REASONS
    return [*group.reasons[:MOST_REASONS], *([f"and {more:,} more"] if more > 0 else [])]


def caution(entries: Sequence[Entry]) -> str:
    """What the intervals are about."""
    if all(len(entry.records) == 1 for entry in entries):
        return "One training run each: the 95% intervals are of these checkpoints, not of the methods."
    return "95% intervals of several training runs are of the methods; that of one run is of its checkpoint."


def apart(sections: Sequence[Section]) -> str:
    """That ranks hold within a group, where there are several."""
    if len(sections) < 2:
        return ""
    return f"{len(sections)} groups of evaluations that are not comparable with each other: ranks hold within a group."


def rows(table: Table) -> list[list[str]]:
    """Titles, entries and landmarks as text, cell by cell; the plane calls an entry by its number in this order."""
    titles = ["rank", "model", *table.columns, f"{table.headline} less that of 1", "verdict"]
    numbered = [(row, i) for i, row in enumerate(table.rows, start=1)]
    return [titles, *(_row(row, i) for row, i in [*numbered, *((row, None) for row in table.landmarks)])]


def _row(row: Row, number: int | None) -> list[str]:
    name = f"({number}) {row.name}" if number is not None and row.rank is None else row.name
    distance = shown(row.apart) if row.apart else ""
    return ["-" if row.rank is None else str(row.rank), name, *map(shown, row.cells), distance, row.note]


# -- pages ------------------------------------------------------------------------------------------------------------


def as_markdown(sections: Sequence[Section], passed_over: Sequence[str]) -> str:
    """The page, with links to its pictures."""
    lines = [MARK, "# Leaderboard", "", apart(sections), ""]
    for number, (group, tables, pictures) in enumerate(sections, start=1):
        lines += [f"## Group {number}", "", *_items(protocol(group), "- {}"), ""]
        if group.reasons:
            lines += ["Not comparable with group 1:", "", *_items(reasons(group), "- {}"), ""]
        lines += [*_items(verdicts(group), "- **{}**"), ""]
        for table, picture in zip(tables, pictures, strict=True):
            titles, *below = (list(map(in_markdown, row)) for row in rows(table))
            lines += [f"### {table.split}", "", *map(_line, (titles, ["---"] * len(titles), *below)), ""]
            lines += [f"![novelty against accuracy]({picture})", ""] if picture else []
        lines += [caution(group.entries), ""]
    if passed_over:
        lines += ["## Passed over", "", *_items(passed_over, "- {}")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _items(texts: Iterable[str], form: str) -> list[str]:
    return [form.format(in_markdown(text)) for text in texts]


def as_html(sections: Sequence[Section], passed_over: Sequence[str]) -> str:
    """The page, with its pictures in it; it loads and runs nothing."""
    lines = [
        "<!DOCTYPE html>",
        MARK,
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>Leaderboard</title><style>{STYLE}</style></head><body><h1>Leaderboard</h1>",
        f"<p>{apart(sections)}</p>",
    ]
    for number, (group, tables, pictures) in enumerate(sections, start=1):
        lines += [f"<h2>Group {number}</h2>", _list(protocol(group))]
        if group.reasons:
            lines += ["<p>Not comparable with group 1:</p>", _list(reasons(group))]
        lines += [f'<p class="verdict"><b>{in_html(line)}</b></p>' for line in verdicts(group)]
        for table, picture in zip(tables, pictures, strict=True):
            titles, *below = rows(table)
            lines += [f"<h3>{table.split}</h3>", "<table>", _tr(titles, "th")]
            lines += [_tr(row, "td", i >= len(table.rows)) for i, row in enumerate(below)]
            lines += ["</table>", picture or ""]
        lines.append(f"<p>{caution(group.entries)}</p>")
    if passed_over:
        lines += ["<h2>Passed over</h2>", _list(passed_over)]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def _tr(values: Iterable[str], kind: str, landmark: bool = False) -> str:
    cells = "".join(f"<{kind}>{in_html(value)}</{kind}>" for value in values)
    return f'<tr class="landmark">{cells}</tr>' if landmark else f"<tr>{cells}</tr>"


def _list(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{in_html(text)}</li>' for text in texts)}</ul>"
