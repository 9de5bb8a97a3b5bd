"""Figures as a table on the terminal."""

from __future__ import annotations

import lightning.pytorch as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_vfs.callbacks import FIDCallback

LANDMARKS = ("floor", "copier", "mean_of_support", "jittered_mean")


def print_results(trainer: pl.Trainer) -> None:
    """A table of figures; Lightning's own takes the brackets of `fid[glyph-cnn]/out` for markup and drops them."""
    if trainer.is_global_zero:
        records = [callback.latest for callback in trainer.callbacks if isinstance(callback, FIDCallback)]  # type: ignore[attr-defined]
        record = next((record for record in records if record is not None), None)
        figures = {} if record is None else record.figures
        # Those that no figure has, as of a model without a support, take no column.
        shown = [name for name in LANDMARKS if any(getattr(figure, name) is not None for figure in figures.values())]
        table = Table("figure")
        for column in ("value", *shown):
            table.add_column(column.replace("_", " "), no_wrap=True)
        for name, value in sorted(trainer.callback_metrics.items()):
            figure = figures.get(name)
            beside = [getattr(figure, landmark, None) for landmark in shown]
            error = "" if figure is None or figure.standard_error is None else f" ± {figure.standard_error:.2g}"
            cells = ("-" if number is None else f"{number:.4g}" for number in beside)
            table.add_row(escape(name), f"{float(value):.6g}{error}", *cells)
        for verdict in record.verdicts if record else ():
            print(verdict.capitalize())
        console = Console()
        if not console.is_terminal:  # a table in a file does not need a terminal's width
            console.width = 240
        console.print(table)
