"""Figures as a table on the terminal."""

from __future__ import annotations

import lightning.pytorch as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_results(trainer: pl.Trainer) -> None:
    """A table of figures; Lightning's own takes the brackets of `fid[glyph-cnn]/out` for markup and drops them."""
    if trainer.is_global_zero:
        table = Table("figure", "value")
        for name, value in sorted(trainer.callback_metrics.items()):
            table.add_row(escape(name), f"{float(value):.6g}")
        Console().print(table)
