"""One kind of progress bar; in a file, a line now and then instead."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0
"""Least time between two lines in a file."""

_BAR = (
    "{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n_fmt}}/{{total_fmt}} {noun} "
    "[{{elapsed}}, {{remaining}} left, {{rate_fmt}}{{postfix}}]"
)
_LINE = (
    "{{desc}}: {{n_fmt}}/{{total_fmt}} {noun} ({{percentage:.0f}}%), "
    "{{elapsed}}, {{remaining}} left, {{rate_fmt}}{{postfix}}"
)
_ENDLESS = "{{desc}}: {{n_fmt}} {noun}, {{elapsed}}, {{rate_fmt}}{{postfix}}"


class Lines:
    """What a bar shows, as plain lines: one at most every `SECONDS_BETWEEN_LINES`, and one at the end.

    It takes tqdm's arguments and has its methods, as far as they are used here.

    Args:
        leave: whether there is a line at the end.
    """

    def __init__(
        self, desc: str, total: float | None, initial: int, unit: str, bar_format: str, leave: bool, file: Any
    ) -> None:
        self.n = initial
        self._postfix = ""
        self._format = {"total": total, "initial": initial, "prefix": desc, "unit": unit, "bar_format": bar_format}
        self._leave, self._file = leave, file
        self._start = self._last = time.monotonic()

    def update(self, n: int = 1) -> None:
        """Count on."""
        self.n += n
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._write()

    def set_postfix(self, figures: dict[str, Any], refresh: bool = False) -> None:
        """What the lines end with."""
        self._postfix = ", ".join(f"{k}={tqdm.format_num(v) if _is_number(v) else v}" for k, v in figures.items())

    def close(self) -> None:
        """The line at the end."""
        if self._leave:
            self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        line = tqdm.format_meter(self.n, elapsed=self._last - self._start, postfix=self._postfix, **self._format)
        print(line, file=self._file, flush=True)


def on_terminal() -> bool:
    """Whether standard error is a terminal; a process without a console has none."""
    return sys.stderr is not None and sys.stderr.isatty()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def progress(
    doing: str,
    total: float | None,
    noun: str,
    unit: str = "it",
    initial: int = 0,
    leave: bool = False,
    disable: bool = False,
) -> tqdm | Lines:
    """A bar on standard error where that is a terminal, else lines; neither where there is no standard error.

    Args:
        doing: what is done.
        total: how much there is to do; None if that is not known.
        noun: of what, in the plural.
        unit: of the rate.
        initial: how much was done before.
        leave: the bar stays when it is closed, instead of vanishing.
        disable: there is neither.
    """
    if disable or sys.stderr is None:
        return tqdm(disable=True)
    terminal = on_terminal()
    if total is not None and math.isinf(total):
        total = None
    style = _ENDLESS if total is None else _BAR if terminal else _LINE
    options: dict[str, Any] = {
        "desc": doing, "total": total, "initial": initial, "unit": unit, "leave": leave, "file": sys.stderr,
        "bar_format": style.format(noun=noun),
    }  # fmt: skip
    if not terminal:
        return Lines(**options)
    # The rate is the mean since the start, so that what is left takes validation and evaluation in.
    return tqdm(**options, smoothing=0, miniters=1, mininterval=0.2, dynamic_ncols=True)
