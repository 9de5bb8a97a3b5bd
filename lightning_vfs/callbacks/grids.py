"""SampleGridCallback: pictures of supports and of what the model generates from them."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_vfs.callbacks.evaluation import can_write, evaluating, sets_of
from lightning_vfs.callbacks.loggers import log_picture
from lightning_vfs.core.checks import check_at_least
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.files import begin_files, local_path
from lightning_vfs.core.progress import progress
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig
from lightning_vfs.data.images import ClassImages
from lightning_vfs.data.module import SPLITS, SetDataModule, Split
from lightning_vfs.data.pictures import sample_grid, save_png, to_uint8, with_caption
from lightning_vfs.evaluation.model import check_model, shots_of
from lightning_vfs.metrics.thumbnails import distances, thumbnails
from lightning_vfs.training.averaging import weights_in_words
from lightning_vfs.training.nonfinite import why_not_finite

LISTING = "samples.json"
"""File that lists the pictures of a run."""


class SampleGridCallback(Callback):
    """Show what the model generates from supports of some classes of a split, at an interval.

    It uses the same classes, supports and noise every time, and the averaged weights if there are any: the caption says
    which weights, and of which step. For a class-conditional model the rows are classes of the training split, with
    real images on the left; for an unconditional one there are only generated images. The picture goes to
    `<dirname>/step=<step>.png`, and to every Lightning logger that takes images. It runs at the end of validation and
    of testing (`validate.png`, `test.png`). When a new run makes its first picture, those of an earlier run in the same
    folder are deleted.

    Args:
        every_n_epochs: make a picture at every validation of each n-th epoch of training.
        num_classes: rows.
        num_images: images per row.
        steps: timesteps that the sampler takes.
        sampler: `ddim`, `ddpm`, `dpmpp_2m`, `euler` or `heun`.
        guidance_scale: of classifier-free guidance, for models trained with `encoder.context_dropout`; 1 is none.
        seed: draws classes, supports and noise.
        split: `train`, `val` or `test`; `train` for a class-conditional model.
        dirname: folder of the pictures; default is `samples` in the logger's folder, or in the trainer's root.
        batch_size: images that are generated at a time; no effect on the images.
        nearest: show below each generated image the real image of its class that is nearest to it, as `copy_rate` and
            `support_affinity` compare images; the caption says how many of these are of the support. Models without a
            support have no such rows.

    Raises:
        ConfigError: an option is out of range.
        EvaluationError: no SetDataModule, a split with fewer classes, or what this model cannot do; before training.
        SetSizeMismatchError: the data has sets of another size than the weights; before training.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_classes: int = 8,
        num_images: int = 8,
        steps: int = 50,
        sampler: SamplerName = "ddim",
        guidance_scale: float = 1.0,
        seed: int = 0,
        split: Split = "test",
        dirname: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        nearest: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"SampleGridCallback.split is {split!r}; allowed: {', '.join(map(repr, SPLITS))}.")
        self.every_n_epochs = every_n_epochs
        self.num_classes = num_classes
        self.num_images = num_images
        self.sampling = SamplingConfig(steps, sampler, guidance_scale=guidance_scale)
        self.seed = seed
        self.split: Split = split
        self.dirname = None if dirname is None else local_path(dirname, "dirname")
        self.batch_size = batch_size
        self.nearest = nearest
        check_at_least(self, 1, "every_n_epochs", "num_classes", "num_images", "batch_size")
        self._begun = False  # whether this run has made a picture

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "predict":
            return
        images = sets_of(trainer, self).split(self.split)
        if images.num_classes < self.num_classes:
            raise EvaluationError(
                f"SampleGridCallback shows {self.num_classes} classes, but split {self.split!r} has "
                f"{images.num_classes}: set num_classes to at most {images.num_classes}."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = False
        self._check(pl_module, sets_of(trainer, self))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == TrainerFn.FITTING
        if not fitting or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._show(trainer, pl_module, f"step={trainer.global_step:08d}" if fitting else "validate")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(trainer, pl_module, "test")

    def _show(self, trainer: pl.Trainer, pl_module: Any, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # it tries the run's code on one batch, and writes nothing
        fitting = trainer.state.fn == TrainerFn.FITTING
        log_dir = trainer.log_dir  # asks the other ranks
        data = sets_of(trainer, self)
        self._check(pl_module, data)
        folder = self.dirname or Path(log_dir or trainer.default_root_dir) / "samples"
        if not can_write(trainer, "Pictures", folder):
            return
        with evaluating(trainer, pl_module):
            made = self._picture(trainer, data, pl_module) if trainer.is_global_zero else None
        problem, grid = None, None
        if made is not None:
            grid = with_caption(made[0], weights_in_words(trainer, pl_module) + made[1])
            fresh = fitting and trainer.ckpt_path is None and not self._begun
            try:
                begin_files(folder, LISTING, [f"{name}.png"], keep=not fresh)
                save_png(grid, folder / f"{name}.png")
            except (ConfigError, OSError) as error:
                problem = str(error)
            self._begun = True
        can_write(trainer, "Pictures", folder, problem)
        if grid is None:
            return
        for logger in trainer.loggers:
            log_picture(logger, f"samples/{self.split}", grid, trainer.global_step)

    def _check(self, pl_module: Any, data: SetDataModule) -> None:
        check_model(pl_module, data, self.sampling)
        if pl_module.config.encoder.condition == "label" and self.split != "train":
            raise EvaluationError(
                f"SampleGridCallback.split is {self.split!r}, but a class-conditional model has contexts only for its "
                "training classes: set it to 'train'."
            )

    def _picture(self, trainer: pl.Trainer, data: SetDataModule, pl_module: Any) -> tuple[Tensor, str] | None:
        """The grid, uint8 (3, H, W), and what its caption ends with.

        None, with a warning, if images are not finite: they would be black.
        """
        condition, total = pl_module.config.encoder.condition, self.num_classes * self.num_images
        support, labels = (None, None) if condition is None else self._rows(data, pl_module)
        batches = pl_module.sample_batches(
            support=support if condition == "support" else None,
            label=labels if condition == "label" else None,
            num_images=total if condition is None else self.num_images,
            sampling=self.sampling,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        made, hidden = [], trainer.progress_bar_callback is None
        with closing(progress("Sample grid", total, "images", unit="image", disable=hidden)) as bar:
            for batch in batches:
                made.append(batch.cpu())
                bar.update(len(batch))
        generated = torch.cat(made)
        if not generated.isfinite().all():
            rank_zero_warn(f"There is no grid, since generated images are not finite; {why_not_finite(pl_module)}.")
            return None
        generated = generated.unflatten(0, (self.num_classes, self.num_images))
        if not self.nearest or support is None or labels is None or condition != "support":
            return sample_grid(support, generated), ""
        images = data.split(self.split)
        real = torch.stack([_nearest(images, *row) for row in zip(labels.tolist(), generated, strict=True)])
        copied = int((real[:, :, None] == support[:, None]).flatten(3).all(dim=3).any(dim=2).sum())
        grid = sample_grid(_interleaved(support, torch.ones_like(support)), _interleaved(generated, real))
        return grid, f"; below: the nearest real image of the class, {copied} of {total} of the support"

    def _rows(self, data: SetDataModule, pl_module: Any) -> tuple[Tensor, Tensor]:
        """Supports (r, k, c, h, w) of `num_classes` classes, and the labels (r,) of these."""
        images = data.split(self.split)
        episodes = images.episodes(len(images), shots_of(pl_module, data), self.seed)
        rows = episodes.first_of_classes(self.num_classes)
        return images.float(episodes.supports[rows]), torch.from_numpy(episodes.labels[rows])


def _nearest(images: ClassImages, label: int, generated: Tensor) -> Tensor:
    """The real images of a class that are nearest to generated ones (m, c, h, w), in [-1, 1]."""
    own = np.arange(images.counts[label]) + images.offsets[label]
    apart = distances(thumbnails(to_uint8(generated)), thumbnails(images.uint8(own)))
    return images.float(own[apart.argmin(dim=1).numpy()])


def _interleaved(upper: Tensor, lower: Tensor) -> Tensor:
    """Rows (r, m, c, h, w) of one with those of the other below each: (2 r, m, c, h, w)."""
    return torch.stack([upper, lower], dim=1).flatten(0, 1)
