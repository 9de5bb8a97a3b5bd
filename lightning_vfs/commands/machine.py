"""What a machine lacks, in a sentence: a GPU that is asked for, a package that an option needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_vfs.core.errors import ConfigError, VFSError


def device_of(name: str) -> torch.device:
    """The device that `--device` names; for `auto`, a GPU if there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ConfigError(
            f"--device {name}: PyTorch finds no such device on this machine, which has {there}. Leave it out for the "
            "best one."
        ) from error
    return device


@contextmanager
def trainer_options(prefix: str = "--trainer.") -> Iterator[None]:
    """What Lightning's Trainer says of options that do not work here, as a ConfigError.

    Args:
        prefix: of the options' names.

    Raises:
        ConfigError: they do not work together, or not on this machine.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, ImportError) as error:
        if isinstance(error, VFSError):
            raise
        if re.search(r"No supported gpu backend|CUDAAccelerator` can not run|MPSAccelerator` can not run", str(error)):
            raise ConfigError(
                f"{prefix}accelerator asks for a GPU, and PyTorch finds none on this machine: leave it out, or give "
                "cpu."
            ) from error
        said = re.sub(r"\s*\n\s*", " ", str(error)).rstrip(".")
        raise ConfigError(f"These {prefix}* options do not work here. Lightning says: {said}.") from error


@contextmanager
def instantiation() -> Iterator[None]:
    """What a class refuses when it is made, which jsonargparse wraps in errors of its own.

    Raises:
        VFSError: this package's own error, as it was raised.
        ConfigError: Lightning's about its options; or a package is not installed, with the way to install it.
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        kind = re.search(r"class_path '(?:[\w.]*\.)?(\w+)'", str(error))
        what, reason = kind[1] if kind else "An option", _reason(error)
        if isinstance(reason, VFSError):
            raise reason from error
        if isinstance(reason, MisconfigurationException):
            said = re.sub(r"\s*\n\s*", " ", str(reason)).rstrip(".")
            raise ConfigError(f"{what} does not take these options. Lightning says: {said}.") from error
        package = re.search(r"No module named '(\w+)|Requirement '([\w-]+)|pip install (?:-U )?'?([\w-]+)", str(reason))
        if reason is None or package is None:
            raise
        name = next(filter(None, package.groups()))
        raise ConfigError(f"{what} needs the package {name}, which is not installed: pip install {name}.") from error


def _reason(error: BaseException) -> Exception | None:
    """The error of a kind that is told in a sentence, among those that led to this one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, VFSError | MisconfigurationException | ImportError):
            return cause
        cause = cause.__cause__
    return None
