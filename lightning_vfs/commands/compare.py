"""lightning-vfs compare: the figures of two evaluations side by side, and whether they are comparable."""

from __future__ import annotations

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.evaluation.comparison import compare as compare_records
from lightning_vfs.evaluation.record import EvaluationRecord, Figure


def compare(first: str, second: str) -> int:
    """Print the figures of two evaluations side by side, then whether they are comparable.

    They are comparable if nothing differs that changes the figures of the same model; otherwise every reason is named
    and the exit status is 1. A floor is the same figure between two disjoint sets of real images.

    Args:
        first: the record of an evaluation, fid.json.
        second: another one.
    """
    a, b = EvaluationRecord.read(first), EvaluationRecord.read(second)
    reasons, remarks = compare_records(a, b)
    print(f"first:  {first}\nsecond: {second}")
    for side, record in (("first", a), ("second", b)):
        for verdict in record.verdicts:
            print(f"{side}, {verdict}")
    _print_table(_table(a.figures, b.figures))
    _print_lines("not comparable:", reasons) if reasons else print("comparable")
    _print_lines("remarks:", remarks)
    return 1 if reasons else 0


def _table(a: dict[str, Figure], b: dict[str, Figure]) -> Table:
    table = Table("figure")
    for column in (
        "first",
        "second",
        "second - first",
        "floor, first",
        "floor, second",
        "copier, first",
        "copier, second",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for name in a | b:
        x, y = a.get(name), b.get(name)
        values = (x and x.value, y and y.value, y.value - x.value if x and y else None)
        beside = (x and x.floor, y and y.floor, x and x.copier, y and y.copier)
        table.add_row(name, *("-" if value is None else f"{value:.5g}" for value in (*values, *beside)))
    return table


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
    return auto_cli(compare, args=args, prog="lightning-vfs compare", as_positional=True, parser_class=ExplainingParser)
