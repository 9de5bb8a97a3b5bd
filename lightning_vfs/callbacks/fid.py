"""FIDCallback: Fréchet distance and few-shot accuracy of the model that is trained, validated or tested."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vfs.callbacks.evaluation import check_at_least, check_model, evaluating, sets_of, shots_of
from lightning_vfs.callbacks.split_evaluation import Share, SplitEvaluation
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.samplers import SamplerName
from lightning_vfs.data.module import Split
from lightning_vfs.metrics import INCEPTION, ImageFeatures

SPLITS: dict[str, Split] = {"in": "train", "out": "test"}
"""Split of the data behind each distribution: classes that the model is trained on, and classes that it never sees."""


class FIDCallback(Callback):
    """Evaluate generated images on classes trained on (`in`) and on classes never trained on (`out`).

    Image i of N is generated from the support of episode i with noise of (seed, i), by the averaged weights if there
    are any, and compared with the real images of the split. It logs `fid/in` and `fid/out` (Heusel et al. 2017), which
    are the figures of torch-fidelity's command on the same images, and `few_shot_accuracy/in` and `/out`, with the
    figure of real images as `few_shot_accuracy/in_real` and `/out_real`. With another extractor than Inception the
    names carry it: `fid[glyph-cnn]/out`. Figures do not depend on the number of ranks or on `batch_size`.

    It runs at the end of validation and of testing, in `trainer.validate` and `trainer.test` always, in `trainer.fit`
    by the two intervals; all that can be checked is checked before training starts. `out` looks at the test split
    during training, as papers of this field report it: leave it out of `splits` to choose a model without it. A
    ModelCheckpoint that monitors a figure needs it at every validation: `every_n_epochs=1`.

    Args:
        every_n_epochs: evaluate at every validation of each n-th epoch of training, or never.
        every_n_steps: evaluate after every n-th optimizer step, too.
        num_images: images to generate per split, at least 2.
        num_real_images: real images per split: all, or so many, drawn by seed.
        splits: of `in` and `out`.
        sampler: `ddim` or `ddpm`.
        steps: timesteps that the sampler takes.
        batch_size: images generated at a time.
        feature_extractor: name in torch-fidelity's registry; `glyph-cnn` for the built-in glyphs.
        weights_path: the extractor's weights; default is torch-fidelity's download.
        seed: draws supports, noise and the classes to choose among.
        few_shot_way: classes that few_shot_accuracy chooses among (chance is 1 / way); None leaves it out.

    Raises:
        ConfigError: an option is out of range.
        EvaluationError: no SetDataModule, too few images or classes, no weights for the extractor; before training.
        SetSizeMismatchError: the data has sets of another size than the weights; before training.
    """

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        num_images: int = 1000,
        num_real_images: int | None = None,
        splits: Sequence[Literal["in", "out"]] = ("in", "out"),
        sampler: SamplerName = "ddim",
        steps: int = 50,
        batch_size: int = 250,
        feature_extractor: str = INCEPTION,
        weights_path: str | os.PathLike[str] | None = None,
        seed: int = 0,
        few_shot_way: int | None = 20,
    ) -> None:
        if not splits or isinstance(splits, str) or not set(splits) <= set(SPLITS):
            raise ConfigError(f"FIDCallback.splits is {splits!r}; it must be a list of 'in', 'out' or both.")
        if sampler not in ("ddim", "ddpm"):
            raise ConfigError(f"FIDCallback.sampler is {sampler!r}; allowed: 'ddim', 'ddpm'.")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.num_images = num_images
        self.num_real_images = num_real_images
        self.splits = tuple(splits)
        self.sampler = sampler
        self.steps = steps
        self.batch_size = batch_size
        self.feature_extractor = feature_extractor
        self.weights_path = weights_path
        self.seed = seed
        self.few_shot_way = few_shot_way
        check_at_least(self, 1, "every_n_epochs", "every_n_steps", or_none=True)
        check_at_least(self, 2, "num_real_images", "few_shot_way", or_none=True)
        check_at_least(self, 2, "num_images")
        check_at_least(self, 1, "steps", "batch_size")
        self._evaluations: dict[str, SplitEvaluation] = {}
        self._latest_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "predict":
            return
        data = sets_of(trainer, self)
        features = ImageFeatures(self.feature_extractor, weights_path=self.weights_path)
        self._evaluations = {
            name: SplitEvaluation(
                name=SPLITS[name],
                images=data.split(SPLITS[name]),
                features=features,
                num_images=self.num_images,
                num_real_images=self.num_real_images,
                way=self.few_shot_way,
                seed=self.seed,
            )
            for name in self.splits
        }

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = sets_of(trainer, self)
        check_model(pl_module, data, self.steps)
        for evaluation in self._evaluations.values():
            evaluation.episodes(shots_of(pl_module, data))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._latest_step = trainer.global_step
        if self.every_n_epochs is not None and not sum(trainer.num_val_batches):
            rank_zero_warn(
                "FIDCallback evaluates at the end of validation, but this run has no validation: set "
                "every_n_steps instead of every_n_epochs, or give the data a val split."
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._evaluations = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        # With accumulated gradients several batches end at the same step.
        if self.every_n_steps is None or step % self.every_n_steps or step == self._latest_step:
            return
        self._latest_step = step
        figures = self.evaluate(trainer, pl_module)
        for name, value in figures.items():
            pl_module.log(name, value, on_step=True, on_epoch=False, logger=False, sync_dist=True)
        # Lightning would pass it to the loggers only at multiples of log_every_n_steps; it counts steps from 0.
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step - 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting and (self.every_n_epochs is None or (trainer.current_epoch + 1) % self.every_n_epochs):
            return
        self._evaluate_and_log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluate_and_log(trainer, pl_module)

    def evaluate(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        """Figures by the names they are logged under; collective, equal on all ranks."""
        data = sets_of(trainer, self)
        check_model(pl_module, data, self.steps)
        share = Share(
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            batch_size=self.batch_size,
            device=pl_module.device,
            show_progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
        )
        generate = partial(pl_module.generate, steps=self.steps, sampler=self.sampler, seed=self.seed)
        figures: dict[str, float] = {}
        with evaluating(trainer, pl_module, self):
            for split, evaluation in self._evaluations.items():
                found = evaluation.figures(generate, shots_of(pl_module, data), share)
                figures |= {self._logged_name(name, split): value for name, value in found.items()}
        self._report(figures)
        return figures

    def _evaluate_and_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, value in self.evaluate(trainer, pl_module).items():
            pl_module.log(name, value, sync_dist=True)

    def _logged_name(self, figure: str, split: str) -> str:
        extractor = "" if self.feature_extractor == INCEPTION else f"[{self.feature_extractor}]"
        if figure.endswith("_real"):
            return f"{figure.removesuffix('_real')}{extractor}/{split}_real"
        return f"{figure}{extractor}/{split}"

    def _report(self, figures: dict[str, float]) -> None:
        line = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        rank_zero_info(f"{self.num_images} generated images a split: {line}")
        if any(math.isnan(value) for value in figures.values()):
            rank_zero_warn(
                "The model generated images that are not finite: their FID is NaN. Its weights may have "
                "diverged, or the sampler overflows at this precision."
            )
