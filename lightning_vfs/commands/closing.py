"""The last lines of a subcommand: where everything is, and the command that usually comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lightning_vfs.callbacks import FIDCallback, SampleGridCallback
from lightning_vfs.core.config import VFSConfig


def next_command(*args: object) -> str:
    """The line that names the next command."""
    return f"Next: lightning-vfs {shlex.join(map(str, args))}"


def sampling_command(config: VFSConfig, source: str, path: object) -> str:
    """The line that says how to generate images with a model.

    Args:
        config: of the model.
        source: `--ckpt_path` or `--pretrained`.
        path: of the model.
    """
    condition = {"support": ("--support", "FOLDER"), "label": ("--label", "0"), None: ()}[config.encoder.condition]
    return next_command("sample", source, path, *condition, "--out", "out")


def files_of_run(trainer: Trainer, folder: str) -> str | None:
    """Which files a run has written to its folder, for people; None if there are none yet."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    grids = [c.dirname or Path(folder) / "samples" for c in callbacks if isinstance(c, SampleGridCallback)]
    records = [c.written for c in callbacks if isinstance(c, FIDCallback) and c.written is not None]
    found = {
        "pictures": [path for path in grids if path.is_dir()],
        "figures": [path for path in [Path(folder) / "metrics.csv"] if path.is_file()],
        "evaluation": records[:1],
    }
    parts = [f"{what}: {path}" for what, paths in found.items() for path in paths]
    return f"Written: {'; '.join(parts)}." if parts else None
