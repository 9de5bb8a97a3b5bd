"""A parser without jsonargparse, which takes a while to be imported."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn

from lightning_vfs.core.errors import UsageError


class PlainParser(ArgumentParser):
    """A parser whose errors are as short as the others'."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)
