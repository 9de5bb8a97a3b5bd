"""lightning-vfs compare: the figures of evaluations side by side, whether they are comparable, and how they differ."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lightning_vfs.commands.plain_parser import PlainParser
from lightning_vfs.evaluation.comparison import compare as compare_records
from lightning_vfs.evaluation.differences import FigureDifference, cautions, differences, margins_of
from lightning_vfs.evaluation.record import EvaluationRecord

DESCRIPTION = """Print the figures of two evaluations side by side, and whether they are comparable.

They are comparable if nothing differs that changes the figures of the same model; otherwise every reason is named and
the exit status is 1. The interval of a difference is paired: both models are judged on the same classes. Verdicts:
higher or lower where the 95% interval leaves out 0; no difference only where the 90% interval lies within the margin;
else undecided. Several training runs of a method are compared by --first and --second.

  lightning-vfs compare a/fid.json b/fid.json
  lightning-vfs compare --first a1/fid.json a2/fid.json --second b1/fid.json b2/fid.json"""

SIDES = ("first", "second")


def compare(first: Sequence[str], second: Sequence[str], margins: Sequence[str] = ()) -> int:
    """Print the comparison of records, given by their files; the exit status, 1 if they are not comparable.

    Raises:
        EvaluationError: a file is not a record, or a margin not a number.
    """
    known = margins_of(margins)
    records = [[EvaluationRecord.read(path) for path in side] for side in (first, second)]
    for side, paths in zip(SIDES, (first, second), strict=True):
        print(*(f"{side + ':':7} {path}" for path in paths), sep="\n")
    for side, paths, several in zip(SIDES, (first, second), records, strict=True):
        for path, record in zip(paths, several, strict=True):
            for verdict in record.verdicts:
                print(f"{side}{f' ({path})' if len(paths) > 1 else ''}, {verdict}")
    reasons, remarks = _differing((*first, *second), [*records[0], *records[1]])
    found = differences(records[0], records[1], known)
    if reasons:
        found = {name: each._replace(difference=None, verdict=None) for name, each in found.items()}
    _print_table(_table(found, records))
    _print_lines("not comparable:", reasons) if reasons else print("comparable")
    _print_lines("remarks:", remarks)
    if any(each.difference for each in found.values()):
        print(*cautions([*records[0], *records[1]]), _of_what(len(first), len(second)), sep="\n")
    return 1 if reasons else 0


def _differing(paths: Sequence[str], records: Sequence[EvaluationRecord]) -> tuple[list[str], list[str]]:
    """Reasons and remarks between the first record and each other one."""
    reasons, remarks = [], dict[str, None]()
    for path, record in zip(paths[1:], records[1:], strict=True):
        found = compare_records(records[0], record)
        reasons += [f"{path}: {reason}" if len(records) > 2 else reason for reason in found.reasons]
        remarks |= dict.fromkeys(found.remarks)
    return reasons, list(remarks)


def _of_what(first: int, second: int) -> str:
    """What the intervals are about, by the training runs of each side."""
    if first == second == 1:
        return "one training run each: of these checkpoints, not of the methods"
    if min(first, second) == 1:
        single, several = SIDES if first == 1 else SIDES[::-1]
        return f"one training run of the {single}: taken to vary from run to run as the {several} does"
    return f"{first} and {second} training runs: of the methods"


def _table(found: dict[str, FigureDifference], records: Sequence[Sequence[EvaluationRecord]]) -> Table:
    table = Table("figure")
    for column in (*SIDES, "second - first", "95% interval", "verdict", "floor", "copier"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, figure in found.items():
        x, y = figure.values
        apart = None if x is None or y is None else y - x
        low, high = (None, None) if figure.difference is None else figure.difference.interval()
        interval = "-" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"
        values = (_number(value, error) for value, error in zip(figure.values, figure.errors, strict=True))
        beside = (_both([_landmark(side, name, kind) for side in records]) for kind in ("floor", "copier"))
        table.add_row(name, *values, _number(apart), interval, figure.verdict or "-", *beside)
    return table


def _number(value: float | None, error: float | None = None) -> str:
    return "-" if value is None else f"{value:.5g}" + ("" if error is None else f" ± {error:.2g}")


def _landmark(records: Sequence[EvaluationRecord], name: str, kind: str) -> str:
    """That of a side's first record with the figure."""
    return next((_number(getattr(record.figures[name], kind)) for record in records if name in record.figures), "-")


def _both(sides: Sequence[str]) -> str:
    """A number of both sides, once where it is the same."""
    shown = [each for each in dict.fromkeys(sides) if each != "-"] or ["-"]
    return shown[0] if len(shown) == 1 else " against ".join(shown)


def _print_table(table: Table) -> None:
    # Names such as fid[glyph-cnn]/out are not markup, and a table in a file does not need a terminal's width.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 240
    console.print(table)


def _print_lines(title: str, lines: list[str]) -> None:
    if lines:
        print(title, *(f"  {line}" for line in lines), sep="\n")


def run(args: list[str]) -> int:
    """Parse the arguments and compare; returns the exit status."""
    parser = PlainParser("lightning-vfs compare", None, DESCRIPTION, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "records", nargs="*", metavar="first second", help="the record of an evaluation, fid.json, and another one"
    )
    parser.add_argument("--first", nargs="+", default=[], metavar="RECORD", help="training runs of one method")
    parser.add_argument("--second", nargs="+", default=[], metavar="RECORD", help="those of another")
    parser.add_argument(
        "--margin",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="differences that do not matter, such as fid=1.5, or a number for all figures; by default 0.02 for "
        "accuracies, precision, recall and copy rates, 0.05 for support_affinity, novel_accuracy and diversity, and "
        "10%% of the first value for others",
    )
    options = parser.parse_args(args)
    first, second = options.first, options.second
    if options.records and (first or second or len(options.records) != 2):
        parser.error("give two records, first and second, or several of each by --first and --second.")
    if options.records:
        first, second = options.records[:1], options.records[1:]
    if not (first and second):
        parser.error("give a first and a second record, or several of each by --first and --second.")
    return compare(first, second, options.margin)
