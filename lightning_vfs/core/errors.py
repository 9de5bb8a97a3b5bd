"""Errors for users: each message says what was found, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 10_000
"""Characters of a message: names and values that it repeats may come from a damaged file."""


class VFSError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback."""

    def __str__(self) -> str:
        message = super().__str__()
        rest = len(message) - LONGEST
        return message if rest <= 0 else f"{message[:LONGEST]} ... and {rest:,} more characters"


class ConfigError(VFSError, ValueError):
    """A configuration that cannot work; the message names the field, the value and what is allowed."""


class UsageError(ConfigError):
    """Arguments of the command line that cannot be taken; it ends with exit status 2."""

    def explain(self, args: Sequence[str]) -> str:
        """What is wrong with the arguments, in one line."""
        return str(self)


class DataError(VFSError, ValueError):
    """Data that cannot be used; the message names the file, folder or class."""


class EvaluationError(VFSError, ValueError):
    """An evaluation that cannot give a figure; raised before any image is generated."""


class CheckpointError(VFSError):
    """A file that is not a lightning_vfs checkpoint, is damaged, or holds another model than the configuration."""


class UntrustedCodeError(CheckpointError):
    """A file names code outside of this package, which is imported only if the user has asked for it."""


class NonFiniteLossError(VFSError, ArithmeticError):
    """A training step whose loss or gradients are infinite or not a number; raised before it changes a weight."""


class SetSizeMismatchError(VFSError, ValueError):
    """Weights made for one set size met data or supports of another."""


class ClassMismatchError(VFSError, ValueError):
    """A class-conditional model met data whose classes differ from those that it was trained on."""
