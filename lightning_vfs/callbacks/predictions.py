"""PredictionWriter: what `predict` generates, as pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.data.pictures import sample_grid, save_png
from lightning_vfs.training.nonfinite import why_not_finite


class PredictionWriter(Callback):
    """Write each predicted set as a picture, its support next to the image generated from it.

    Pictures are called `<index>.png` by the set's global index, so that ranks write into one folder.

    Args:
        dirname: folder of the pictures; default is `predictions` in the logger's folder, or in the trainer's root.

    Raises:
        EvaluationError: generated images are not finite.
    """

    def __init__(self, dirname: str | os.PathLike[str] | None = None) -> None:
        self.dirname = dirname

    def folder(self, trainer: pl.Trainer) -> Path:
        """Where the pictures go. Collective, as Lightning's `log_dir` is."""
        log_dir = trainer.log_dir
        return Path(self.dirname or Path(log_dir or trainer.default_root_dir) / "predictions")

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
            save_png(sample_grid(support[None], generated[None]), folder / f"{index:06d}.png")
