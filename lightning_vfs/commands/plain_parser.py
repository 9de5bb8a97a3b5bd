"""A parser without jsonargparse, which takes a while to be imported."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn

from lightning_vfs.core.errors import UsageError


class PlainParser(ArgumentParser):
    """Its errors are as short as those of the other parsers.

    Raises:
        UsageError: arguments that it does not know, or that are missing.
    """

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)
