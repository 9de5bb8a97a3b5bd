"""FIDCallback: figures of the images of the model that is trained, validated or tested, and the record of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vfs.callbacks.evaluation import check_model, evaluating, sets_of, shots_of
from lightning_vfs.callbacks.evaluation_record import record_path, write_record
from lightning_vfs.core.checks import check_at_least
from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig
from lightning_vfs.data.module import SetDataModule, Split
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.evaluation.split import EvaluationPlan, SplitEvaluation, check_class_names
from lightning_vfs.metrics import INCEPTION, ImageFeatures
from lightning_vfs.metrics.extractors import check_metrics
from lightning_vfs.metrics.fidelity import FidelityOptions
from lightning_vfs.training.averaging import weights_in_words

SPLITS: dict[str, Split] = {"in": "train", "out": "test"}
"""Split of the data behind each distribution: classes that the model is trained on, and classes that it never sees."""


class FIDCallback(Callback):
    """Evaluate generated images on classes trained on (`in`) and on classes never trained on (`out`).

    Image i of N is generated from the support of episode i with noise of (seed, i), by the averaged weights if there
    are any, and compared with the real images of the split. The baselines without a support are evaluated on the same
    episodes: a class-conditional model generates their classes, `in` alone, and an unconditional one whatever it does,
    with a few_shot_accuracy about chance. It logs `fid/in` and `fid/out` (Heusel et al. 2017), which
    are the figures of torch-fidelity's command on the same images, and `few_shot_accuracy/in` and `/out`, with the
    figure of real images as `few_shot_accuracy/in_real` and `/out_real`. With another extractor than Inception the
    names carry it: `fid[glyph-cnn]/out`. Figures do not depend on the number of ranks or on `batch_size`. Every
    evaluation writes `fid.json` beside the run's checkpoints: the figures, each with its floor between real images, and
    all that they depend on (`lightning-vfs compare` tells whether two such records are comparable).

    It runs at the end of validation and of testing, in `trainer.validate` and `trainer.test` always, in `trainer.fit`
    by the two intervals; all that can be checked is checked before training starts. `out` looks at the test split
    during training, as papers of this field report it: leave it out of `splits` to choose a model without it. A
    ModelCheckpoint that monitors a figure needs it at every validation: `every_n_epochs=1`.

    Args:
        every_n_epochs: evaluate at every validation of each n-th epoch of training, or never.
        every_n_steps: evaluate after every n-th optimizer step, too.
        metrics: of `fid`, `kid`, `isc` (Inception score) and `prc` (logged as `precision` and `recall`).
        num_images: images to generate per split, at least 2.
        num_real_images: real images per split: all, or so many, drawn by seed.
        splits: of `in` and `out`.
        per_class: FID of every class, or of the classes named, as `fid/class/<name>`.
        sampler: `ddim`, `ddpm` or `dpmpp_2m`.
        steps: timesteps that the sampler takes.
        eta: of DDIM.
        guidance_scale: of classifier-free guidance, for models trained with `encoder.context_dropout`; 1 is none.
        guidance_interval: timesteps t of the full process, low <= t < high, that are guided; all by default.
        shots: images in a support; by default as many as condition one generation in training.
        batch_size: images generated at a time.
        feature_extractor: name in torch-fidelity's registry; `glyph-cnn` for the built-in glyphs.
        weights_path: the extractor's weights; default is torch-fidelity's download.
        seed: draws supports, noise and the classes to choose among.
        few_shot_way: classes that few_shot_accuracy chooses among (chance is 1 / way), or several such numbers; the
            largest is logged by the plain name, others as `few_shot_accuracy_5`. None leaves it out.
        options: of the metrics, by torch-fidelity's names: `kid_subset_size` and so on.
        vlb_images: real images per split whose variational bound is computed, as `vlb/in` and `vlb/out` in bits per
            dimension; 0 leaves it out. A model of latents has none.
        vlb_steps: timesteps of that bound; all by default.
        save_images: folder for all images, generated and real, as PNGs that torch-fidelity's command takes.
        record: file of the record; None is `fid.json` beside the checkpoints.

    Raises:
        ConfigError: an option is out of range.
        EvaluationError: no SetDataModule, too few images or classes, no weights for the extractor, or what this model
            cannot do; before training.
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
        few_shot_way: int | Sequence[int] | None = 20,
        metrics: Sequence[str] = ("fid",),
        per_class: bool | Sequence[str] = False,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[int, int] | None = None,
        shots: int | None = None,
        options: FidelityOptions = FidelityOptions(),
        vlb_images: int = 0,
        vlb_steps: int | None = None,
        save_images: str | os.PathLike[str] | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        if not splits or isinstance(splits, str) or not set(splits) <= set(SPLITS):
            raise ConfigError(f"FIDCallback.splits is {splits!r}; it must be a list of 'in', 'out' or both.")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.num_images = num_images
        self.num_real_images = num_real_images
        self.splits = tuple(splits)
        self.sampling = SamplingConfig(steps, sampler, eta, guidance_scale, guidance_interval)
        self.shots = shots
        self.batch_size = batch_size
        self.feature_extractor = feature_extractor
        self.weights_path = weights_path
        self.seed = seed
        self.few_shot_way = few_shot_way
        self.metrics = tuple(dict.fromkeys(metrics))
        self.per_class = per_class if isinstance(per_class, bool) else tuple(per_class)
        self.options = options
        self.vlb_images = vlb_images
        self.vlb_steps = vlb_steps
        self.save_images = save_images
        self.record = record
        check_at_least(self, 1, "every_n_epochs", "every_n_steps", "shots", "vlb_steps", or_none=True)
        check_at_least(self, 2, "num_real_images", or_none=True)
        check_at_least(self, 2, "num_images")
        check_at_least(self, 1, "batch_size")
        check_at_least(self, 0, "vlb_images")
        check_metrics(self.metrics)
        if any(isinstance(way, bool) or not isinstance(way, int) or way < 2 for way in self.ways):
            raise ConfigError(
                f"FIDCallback.few_shot_way is {few_shot_way!r}; it must be a whole number of at least 2, or several, "
                "or null."
            )
        self._evaluations: dict[str, SplitEvaluation] = {}
        self._latest_step = 0

    @property
    def ways(self) -> tuple[int, ...]:
        """Numbers of classes that few_shot_accuracy chooses among; none where it is left out."""
        if self.few_shot_way is None:
            return ()
        return tuple(self.few_shot_way) if isinstance(self.few_shot_way, Sequence) else (self.few_shot_way,)

    @property
    def features(self) -> ImageFeatures:
        """The extractor; there once a trainer has set the callback up."""
        return next(iter(self._evaluations.values())).features

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "predict":
            return
        data = sets_of(trainer, self)
        features = ImageFeatures(self.feature_extractor, self.metrics, self.weights_path)
        plan = EvaluationPlan(
            num_images=self.num_images,
            num_real_images=self.num_real_images,
            ways=self.ways,
            seed=self.seed,
            sampling=self.sampling,
            options=self.options,
            per_class=self.per_class,
            save_images=None if self.save_images is None else Path(self.save_images),
            vlb_images=self.vlb_images,
            vlb_steps=self.vlb_steps,
        )
        self._evaluations = {
            name: SplitEvaluation(SPLITS[name], data.split(SPLITS[name]), features, plan) for name in self.splits
        }
        if isinstance(self.per_class, tuple):
            check_class_names(self.per_class, list(self._evaluations.values()))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        shots = self._checked_shots(pl_module, sets_of(trainer, self))
        for evaluation in self._evaluations.values():
            evaluation.episodes(shots)

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
        shots = self._checked_shots(pl_module, data)
        share = RankShard(
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            batch_size=self.batch_size,
            device=pl_module.device,
            show_progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
        )
        with evaluating(trainer, pl_module):
            results = {
                split: evaluation.evaluate(pl_module, shots, share) for split, evaluation in self._evaluations.items()
            }
        figures = {
            self._logged_name(name, split): figure
            for split, result in results.items()
            for name, figure in result.figures.items()
        }
        path = record_path(self, trainer)
        if trainer.is_global_zero:
            write_record(self, trainer, pl_module, data, figures, results, share, shots, path)
        logged = {name: figure.value for name, figure in figures.items() if "_std" not in name}
        self._report(logged, weights_in_words(trainer, pl_module))
        return logged

    def _checked_shots(self, pl_module: Any, data: SetDataModule) -> int | None:
        """Images in a support, None for a model that takes none; after all is held against the model.

        Raises:
            SetSizeMismatchError: the data has sets of another size than the weights.
            EvaluationError: an option that this model cannot satisfy.
        """
        check_model(pl_module, data, self.sampling)
        config = pl_module.config
        if self.vlb_images and config.latent.autoencoder:
            raise EvaluationError(
                f"FIDCallback.vlb_images is {self.vlb_images}, but this model diffuses latents, whose variational "
                "bound says nothing of pixels: set it to 0."
            )
        if not config.encoder.takes_support:
            self._check_baseline(config.encoder.architecture)
            return None
        most = shots_of(pl_module, data)
        if self.shots is not None and self.shots > most:
            raise EvaluationError(
                f"FIDCallback.shots is {self.shots}, but this model takes supports of 1 to {most}: set it to at most "
                f"{most}, or to null for {most}."
            )
        return self.shots or most

    def _check_baseline(self, architecture: str) -> None:
        if self.shots is not None:
            raise EvaluationError(
                f"FIDCallback.shots is {self.shots}, but this model takes no support (encoder.architecture is "
                f"{architecture!r}): set it to null."
            )
        if architecture == "class_label" and "out" in self.splits:
            raise EvaluationError(
                "FIDCallback.splits has 'out', classes never trained on, but a class-conditional model has contexts of "
                "its training classes alone: set splits to ['in']."
            )

    def _evaluate_and_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, value in self.evaluate(trainer, pl_module).items():
            pl_module.log(name, value, sync_dist=True)

    def _logged_name(self, figure: str, split: str) -> str:
        if figure == "vlb":
            return f"vlb/{split}"
        extractor = "" if self.feature_extractor == INCEPTION else f"[{self.feature_extractor}]"
        if figure.startswith("class/"):
            return f"fid{extractor}/{figure}"
        if figure.endswith("_real"):
            return f"{figure.removesuffix('_real')}{extractor}/{split}_real"
        return f"{figure}{extractor}/{split}"

    def _report(self, figures: dict[str, float], weights: str) -> None:
        line = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        rank_zero_info(f"{self.num_images} generated images a split, {weights}: {line}")
        if any(math.isnan(value) for value in figures.values()):
            rank_zero_warn(
                "The model generated images that are not finite: their FID is NaN. Its weights may have "
                "diverged, or the sampler overflows at this precision."
            )
