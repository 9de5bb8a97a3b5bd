"""Figures as a table on the terminal."""

from __future__ import annotations

import lightning.pytorch as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_vfs.callbacks import FIDCallback


def print_results(trainer: pl.Trainer) -> None:
    """A table of figures; Lightning's own takes the brackets of `fid[glyph-cnn]/out` for markup and drops them."""
    if trainer.is_global_zero:
        records = [callback.latest for callback in trainer.callbacks if isinstance(callback, FIDCallback)]  # type: ignore[attr-defined]
        record = next((record for record in records if record is not None), None)
        table = Table("figure", "value", "floor", "copier") if record else Table("figure", "value")
        for name, value in sorted(trainer.callback_metrics.items()):
            figure = record.figures.get(name) if record else None
            beside = (None, None) if figure is None else (figure.floor, figure.copier)
            shown = ["-" if number is None else f"{number:.6g}" for number in beside] if record else []
            table.add_row(escape(name), f"{float(value):.6g}", *shown)
        for verdict in record.verdicts if record else ():
            print(verdict.capitalize())
        Console().print(table)
