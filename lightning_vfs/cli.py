"""The command `lightning-vfs`. What a subcommand needs is imported when it runs, so that help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from io import TextIOWrapper

from lightning_vfs.core.errors import (
    CheckpointError,
    ClassMismatchError,
    ConfigError,
    NonFiniteLossError,
    SetSizeMismatchError,
    UsageError,
    VFSError,
)
from lightning_vfs.version import __version__

SUBCOMMANDS = {
    "fit": "train a model on sets of images, evaluate it while it trains",
    "validate": "evaluate a checkpoint: loss on validation classes, FID by the callback",
    "test": "evaluate a checkpoint: loss on test classes, FID by the callback",
    "predict": "generate one image for every test set",
    "evaluate": "all figures of a checkpoint, without a training configuration",
    "data": "show a folder of images as training sees it, before training",
    "sample": "generate images of a class from a folder of a few of its images",
    "demo": "a page on which a few pictures of a class become new ones",
    "convert": "convert checkpoints of Lightning or the JAX system, and folders of weights",
    "extractor": "train a feature extractor on the classes of a data set",
    "cache": "list and clear what is kept on disk: decoded images, features",
    "push": "share a model on the Hugging Face hub, with a card that has its figures",
    "compare": "show two evaluations side by side, and say whether they are comparable",
    "leaderboard": "rank many evaluations in a table, with intervals, copiers and a picture",
    "verify": "generate a sample of an evaluation's images again, and say whether they are the same",
}

ON_ALL_RANKS = (ConfigError, CheckpointError, SetSizeMismatchError, ClassMismatchError, NonFiniteLossError)
"""Errors that all processes of a machine raise alike, from the same arguments and files or after a comparison: the
first one prints them. Others may concern a single process, such as an image that only this one reads."""

HELP = f"""usage: lightning-vfs SUBCOMMAND [options]

Few-shot image generation with diffusion models: train, evaluate, sample.

subcommands:
{chr(10).join(f"  {name:<13}{text}" for name, text in SUBCOMMANDS.items())}

options:
  -h, --help   show this message
  --version    show the version

Help on a subcommand: lightning-vfs SUBCOMMAND --help, and all of its options: --help.all
--config takes a file, or the name of a configuration that comes with the package, such as
glyphs, folders, unet, baselines/unconditional or scale/one_node (a wrong name lists them all).
Start with:  lightning-vfs fit --config glyphs
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status: 0, 1 for an error or a "no" that was explained, 2 for wrong usage."""
    args = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names of files may be any bytes
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"lightning-vfs {__version__}")
        return 0
    name, *rest = args
    if name not in SUBCOMMANDS:
        near = get_close_matches(name, SUBCOMMANDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"use one of {', '.join(SUBCOMMANDS)}."
        print(f"lightning-vfs: there is no subcommand {name!r}; {meant}", file=sys.stderr)
        return 2
    from lightning_vfs.commands import help as helps

    asked = helps.asks(rest)
    if asked == helps.SHORT and name in helps.HELP:
        print(helps.HELP[name], end="")
        return 0
    from lightning_vfs.commands import configurations
    from lightning_vfs.commands.quiet import quiet
    from lightning_vfs.commands.trust import use_working_folder

    try:
        rest = [helps.SHORT if arg == helps.ALL else arg for arg in rest] if asked else configurations.resolve(rest)
        use_working_folder(rest)
        with quiet(training=name == "fit"):
            if name not in ("fit", "validate", "test", "predict"):
                from importlib import import_module

                return import_module(f"lightning_vfs.commands.{name}").run(rest) or 0
            from lightning_vfs.commands import lightning

            if asked:
                lightning.print_help(name)
            else:
                lightning.VFSCLI([name, *rest])
    except SystemExit as end:
        if asked and not end.code:  # the parser has printed its help
            return 0
        raise
    except VFSError as error:
        first = all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "SLURM_LOCALID"))
        if first or not isinstance(error, ON_ALL_RANKS):
            if isinstance(error, UsageError):
                said = f"lightning-vfs {name}: {error.explain(rest)}"
            else:
                said = f"{type(error).__name__}: {error}"
            print(said, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0
