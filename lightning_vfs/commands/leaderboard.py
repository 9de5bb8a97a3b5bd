"""lightning-vfs leaderboard: many evaluations in a table, ranked where they are comparable."""

from __future__ import annotations

import glob
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from lightning_vfs.commands.plain_parser import PlainParser
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.files import local_path, replacing
from lightning_vfs.evaluation.board import MARK, Section, as_html, as_markdown, plain
from lightning_vfs.evaluation.codec import is_unchanged, plain_values
from lightning_vfs.evaluation.plane import draw_plane
from lightning_vfs.evaluation.ranking import Entry, by_run, grouped, tables
from lightning_vfs.evaluation.record import FILE_NAME, EvaluationRecord

DESCRIPTION = """Rank evaluations by novel_accuracy, with 95% intervals, real images and copiers beside the models.

Only evaluations that are comparable (see compare) are ranked together; the others stand in groups of their own, with
the reason. What copies its support is said first. Records that cannot be read, or were changed after they were written,
are named and passed over; the exit status is 1 if none is left.

  lightning-vfs leaderboard runs --out leaderboard.md
  lightning-vfs leaderboard 'runs/**/fid*.json' --by run --out leaderboard.html"""


def leaderboard(places: Sequence[str], out: str | None, by: str) -> list[str]:
    """Write the table of records, or print it without a file; returns what was passed over, a line each.

    Raises:
        ConfigError: the file is neither .md nor .html, or is there and is no leaderboard.
        EvaluationError: no record is left, or the file cannot be written.
    """
    file = None if out is None else _checked(out)
    found, passed_over = _read(places)
    if not found:
        problems = "; ".join(passed_over) or "no file was given"
        raise EvaluationError(f"There is no record of an evaluation to rank: {problems}.")
    groups = grouped(by_run(found) if by == "run" else found)
    ranked = [(group, tables(group)) for group in groups]
    if file is None:
        print(as_markdown([Section(group, t, [None] * len(t)) for group, t in ranked], passed_over), end="")
        return passed_over
    planes = [[draw_plane(table, f"Group {i}, {table.split}") for table in t] for i, (_, t) in enumerate(ranked, 1)]
    try:
        if file.suffix == ".html":
            page = as_html([Section(*one, drawn) for one, drawn in zip(ranked, planes, strict=True)], passed_over)
        else:
            names = _write_pictures(file, planes)
            page = as_markdown([Section(*one, these) for one, these in zip(ranked, names, strict=True)], passed_over)
        with replacing(file) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise EvaluationError(f"The leaderboard cannot be written to {file}: {error}.") from error
    number = len(found)
    several = "" if len(groups) == 1 else f" in {len(groups)} groups that are not comparable"
    print(f"{file}: {number} evaluation{'s' if number > 1 else ''}{several}")
    return passed_over


def _checked(out: str) -> Path:
    file = local_path(out, "--out")
    if file.suffix not in (".md", ".html"):
        raise ConfigError(f"--out {out}: the name of a table ends in .md or .html.")
    if file.exists() and not _is_ours(file):
        raise ConfigError(f"--out {out} is there already, and no leaderboard: choose another name.")
    return file


def _is_ours(file: Path) -> bool:
    """Whether a file is a page or picture of a leaderboard."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            return MARK in lines.read(1000)
    except OSError:
        return False


def _write_pictures(page: Path, planes: Sequence[Sequence[str | None]]) -> list[list[str | None]]:
    """Write the planes next to a page, as leaderboard.svg, leaderboard-2.svg and so on; returns links to them."""
    links: list[list[str | None]] = []
    number = 0
    for of_group in planes:
        links.append([])
        for drawn in of_group:
            if drawn is None:
                links[-1].append(None)
                continue
            number += 1
            file = page.with_name(f"{page.stem}{f'-{number}' if number > 1 else ''}.svg")
            if file.exists() and not _is_ours(file):
                raise ConfigError(f"{file} is there already, and no picture of a leaderboard: choose another --out.")
            with replacing(file) as temporary:
                temporary.write_text(f"{MARK}\n{drawn}", encoding="utf-8", errors="backslashreplace")
            links[-1].append(quote(file.name, errors="surrogateescape"))
    return links


def _read(places: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Records by their files' names, and why others were passed over."""
    files, passed_over = _files(places)
    read: dict[Path, EvaluationRecord] = {}
    for file in files:
        try:
            if is_unchanged(plain_values(file)) is False:
                raise EvaluationError(
                    f"{file} was changed after it was written (its content_sha256 is of other values)"
                )
            read[file] = EvaluationRecord.read(file)
        except EvaluationError as error:
            passed_over.append(plain(str(error).splitlines()[0]))
    names = _names(list(read))
    return [Entry(names[file], (record,)) for file, record in read.items()], passed_over


def _files(places: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files of all places: files, folders with records at any depth, and patterns; each file once."""
    found: dict[Path, Path] = {}
    nothing = []
    for place in places:
        path = local_path(place, "A record")
        stem, suffix = Path(FILE_NAME).stem, Path(FILE_NAME).suffix
        if path.is_dir():
            files = sorted(path.rglob(f"{stem}{suffix}")) + sorted(path.rglob(f"{stem}-v*{suffix}"))
        elif path.exists():
            files = [path]
        else:
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if not os.path.isdir(name)]
        if not files:
            nothing.append(f"{place}: there is no record, and no folder with one")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values()), nothing


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """What tells files apart: their folders below those that all share, without what every run's folder has."""
    if not files:
        return {}
    whole = {file: Path(os.path.abspath(file)) for file in files}
    shared = Path(os.path.commonpath([path.parent for path in whole.values()]))
    short = {}
    for file, path in whole.items():
        below = path.relative_to(shared)
        parts = [part for part in below.parts if part not in ("checkpoints", FILE_NAME)]
        short[file] = "/".join(parts) or path.parent.name or str(path)
    counts = Counter(short.values())
    return {file: name if counts[name] == 1 else str(whole[file].relative_to(shared)) for file, name in short.items()}


def run(args: list[str]) -> int:
    """Parse the arguments and rank; returns the exit status."""
    parser = PlainParser("lightning-vfs leaderboard", None, DESCRIPTION, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "records",
        nargs="+",
        help="records (fid.json), folders with them at any depth, or patterns such as '**/fid.json'",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="table.md, with table.svg, or table.html; by default it is printed"
    )
    parser.add_argument(
        "--by",
        choices=("record", "run"),
        default="record",
        help="run: training runs that differ in their seeds alone are one method, with an interval over the runs",
    )
    options = parser.parse_args(args)
    for problem in leaderboard(options.records, options.out, options.by):
        print(f"passed over: {problem}", file=sys.stderr)
    return 0
