"""PredictionWriter: what `predict` generates, as pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_vfs.callbacks.evaluation import can_write
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.files import begin_files, local_path
from lightning_vfs.data.pictures import sample_grid, save_png
from lightning_vfs.training.nonfinite import why_not_finite

LISTING = "predictions.json"
"""File that lists the pictures."""


def _name(index: int) -> str:
    return f"{index:06d}.png"


class PredictionWriter(Callback):
    """Write each predicted set as a picture, its support next to the image generated from it.

    Pictures are called `<index>.png` by the set's global index, so that ranks write into one folder.

    Args:
        dirname: folder of the pictures; default is `predictions` in the logger's folder, or in the trainer's root.

    Raises:
        EvaluationError: generated images are not finite.
    """

    def __init__(self, dirname: str | os.PathLike[str] | None = None) -> None:
        self.dirname = None if dirname is None else local_path(dirname, "dirname")

    def folder(self, trainer: pl.Trainer) -> Path:
        """Where the pictures go. Collective, as Lightning's `log_dir` is."""
        log_dir = trainer.log_dir
        return self.dirname or Path(log_dir or trainer.default_root_dir) / "predictions"

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder, problem = self.folder(trainer), None
        can_write(trainer, "Predictions", folder)
        if trainer.is_global_zero:
            count = getattr(trainer.datamodule, "eval_sets", 0)  # type: ignore[attr-defined]
            try:
                begin_files(folder, LISTING, [_name(index) for index in range(count)])
            except (ConfigError, OSError) as error:
                problem = str(error)
        can_write(trainer, "Predictions", folder, problem)

    # Lightning's BasePredictionWriter asks the loader which samples are in a batch; here the batch says it.
    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: dict[str, Tensor], *_: Any
    ) -> None:
        folder = self.folder(trainer)
        if not outputs["generated"].isfinite().all():
            raise EvaluationError(
                "Generated images are not finite, and pictures of this batch are not written; "
                f"{why_not_finite(pl_module)}."
            )
        for index, support, generated in zip(
            outputs["index"].tolist(), outputs["support"], outputs["generated"], strict=True
        ):
            save_png(sample_grid(support[None], generated[None]), folder / _name(index))
