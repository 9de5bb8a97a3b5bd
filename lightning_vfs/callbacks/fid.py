"""FIDCallback: when a model that is trained, validated or tested is evaluated, and where figures and record go."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vfs.callbacks.evaluation import can_write, evaluating, sets_of
from lightning_vfs.core.checks import check_at_least
from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import local_path, read_json
from lightning_vfs.core.fingerprint import hashes_of
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig
from lightning_vfs.evaluation.evaluator import Evaluator
from lightning_vfs.evaluation.model import model_record
from lightning_vfs.evaluation.plan import EvaluationPlan
from lightning_vfs.evaluation.record import FILE_NAME, EvaluationRecord, ModelRecord
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.metrics import INCEPTION
from lightning_vfs.metrics.fidelity import FidelityOptions
from lightning_vfs.training.averaging import averaging_of, weights_in_words
from lightning_vfs.training.nonfinite import why_not_finite


class FIDCallback(Callback):
    """Evaluate generated images on classes trained on (`in`) and on classes never trained on (`out`).

    Image i of N is generated from the support of episode i with noise of (seed, i), with the averaged weights if there
    are any, and compared with the real images of the split. The baselines without a support are evaluated on the same
    episodes: a class-conditional model generates their classes, only for `in`; an unconditional one ignores them, with
    a few_shot_accuracy about chance. It logs `fid/in` and `fid/out` (Heusel et al. 2017), which equal the figures of
    torch-fidelity's command on the same images, and `few_shot_accuracy/in` and `/out`, with the figure of real images
    as `few_shot_accuracy/in_real` and `/out_real`. With an extractor other than Inception, the names include it:
    `fid[glyph-cnn]/out`. Figures do not depend on the number of ranks or on `batch_size`. Every evaluation writes
    `fid.json` next to the run's checkpoints: the figures, each with its floor between real images, and everything they
    depend on (`lightning-vfs compare` says whether two such records are comparable).

    It runs at the end of validation and of testing: always in `trainer.validate` and `trainer.test`, in `trainer.fit`
    at the two intervals. Everything that can be checked is checked before training starts. `out` uses the test split
    during training, as papers of this field report it: leave it out of `splits` to select a model without it. A
    ModelCheckpoint that monitors a figure needs it at every validation: `every_n_epochs=1`.

    Args:
        every_n_epochs: evaluate at every validation of each n-th epoch of training, or never.
        every_n_steps: evaluate after every n-th optimizer step, too.
        metrics: of `fid`, `kid`, `isc` (Inception score) and `prc` (logged as `precision` and `recall`); none for the
            variational bound alone, which needs no extractor and no generated images.
        num_images: images to generate per split, at least 2.
        num_real_images: real images per split, drawn by seed; None for all, at most 50,000.
        splits: of `in` and `out`.
        images_per_class: images to generate for each class, in place of `num_images`.
        support_pool: images of each class that are set aside for supports and left out of the real images, drawn by
            seed: a share of the class, below 1, or a number. None takes supports from all images, and compares with
            all; with it, set `shots`.
        lpips: mean LPIPS between pairs of generated images of a class, which says how much they vary; it needs
            torchvision's weights of VGG16.
        per_class: FID of every class, or of the classes named, as `fid/class/<name>`.
        sampler: `ddim`, `ddpm`, `dpmpp_2m`, `euler` or `heun`.
        steps: timesteps that the sampler takes.
        eta: of DDIM.
        guidance_scale: of classifier-free guidance, for models trained with `encoder.context_dropout`; 1 is none.
        guidance_interval: timesteps t of the full process, low <= t < high, that are guided; all by default.
        shots: images in a support; by default as many as condition one generation in training.
        batch_size: images generated at a time.
        feature_extractor: name in torch-fidelity's registry, `glyph-cnn` for the built-in glyphs, or the folder of an
            extractor of one's own (`lightning-vfs extractor fit`).
        weights_path: the extractor's weights; default is torch-fidelity's download.
        seed: draws supports, noise and the classes to choose among.
        few_shot_way: classes that few_shot_accuracy chooses among (chance is 1 / way), or several such numbers; the
            largest is logged by the plain name, others as `few_shot_accuracy_5`. None leaves it out.
        diversity_images: images of each of up to 200 supports whose variety is compared with that of real images, as
            `diversity` and `diversity_pixels`, at least 2; 0 leaves the figures out.
        fid_replicates: whether FID gets an interval, from 20 more distances; None for features of up to 512 dimensions,
            where it takes a second.
        options: of the metrics, by torch-fidelity's names: `kid_subset_size` and so on.
        vlb_images: real images per split whose variational bound is computed, as `vlb/in` and `vlb/out` in bits per
            dimension; 0 leaves it out. A model of latents has none.
        vlb_steps: timesteps of that bound; all by default.
        save_images: folder for all images, generated and real, as PNGs that torch-fidelity's command takes.
        record: file of the record; None is `fid.json` next to the checkpoints, or `fid-v1.json` and so on where another
            run's has that name.

    Attributes:
        latest: the record of the latest evaluation.
        written: the file that it is in.

    Raises:
        ConfigError: an option is out of range.
        EvaluationError: no SetDataModule, too few images or classes, no weights for the extractor, or what this model
            cannot do; before training. Without training, figures that are not finite.
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
        diversity_images: int = 2,
        fid_replicates: bool | None = None,
        options: FidelityOptions = FidelityOptions(),
        vlb_images: int = 0,
        vlb_steps: int | None = None,
        save_images: str | os.PathLike[str] | None = None,
        record: str | os.PathLike[str] | None = None,
        images_per_class: int | None = None,
        support_pool: float | None = None,
        lpips: bool = False,
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        check_at_least(self, 1, "every_n_epochs", "every_n_steps", or_none=True)
        self.record = None if record is None else local_path(record, "record")
        self.plan = EvaluationPlan(
            num_images=num_images,
            num_real_images=num_real_images,
            images_per_class=images_per_class,
            support_pool=support_pool,
            lpips=lpips,
            splits=splits,
            sampling=SamplingConfig(steps, sampler, eta, guidance_scale, guidance_interval),
            shots=shots,
            batch_size=batch_size,
            metrics=metrics,
            feature_extractor=feature_extractor,
            weights_path=weights_path,
            options=options,
            per_class=per_class,
            few_shot_way=few_shot_way,
            diversity_images=diversity_images,
            fid_replicates=fid_replicates,
            vlb_images=vlb_images,
            vlb_steps=vlb_steps,
            seed=seed,
            save_images=None if save_images is None else local_path(save_images, "save_images"),
        )
        self.latest: EvaluationRecord | None = None
        self.written: Path | None = None
        self._evaluator: Evaluator | None = None  # from setup to teardown
        self._latest_step = 0

    # -- when it evaluates -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "predict":
            self._evaluator = Evaluator(self.plan, sets_of(trainer, self))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._evaluator = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._evaluator is not None
        self._evaluator.check(pl_module)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for evaluation in self._evaluator.splits.values():
                evaluation.make_room(trainer.is_global_zero)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._latest_step = trainer.global_step
        # Lightning counts the batches of validation only in an epoch that has one.
        validates = trainer.enable_validation and sets_of(trainer, self).has_split("val")
        if self.every_n_epochs is not None and not validates:
            rank_zero_warn(
                "FIDCallback evaluates at the end of validation, but this run has no validation: set "
                "every_n_steps instead of every_n_epochs, or give the data a val split."
            )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        # With accumulated gradients several batches end at the same step.
        if self.every_n_steps is None or step % self.every_n_steps or step == self._latest_step:
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
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
        self.on_test_epoch_end(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # it tries the run's code on one batch, and writes nothing
        for name, value in self.evaluate(trainer, pl_module).items():
            # Equal on all ranks; without `sync_dist` Lightning warns that they may not be.
            pl_module.log(name, value, sync_dist=True)

    # -- evaluation, and where its record goes -----------------------------------------------------------------------

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """Figures by the names they are logged under; collective, equal on all ranks."""
        assert self._evaluator is not None, "a trainer has to set the callback up"
        shard = RankShard(self.plan.batch_size, pl_module.device, trainer.progress_bar_callback is not None)
        weights = _model_record(trainer, pl_module)
        path = _record_path(self.record, trainer, weights)
        writes = can_write(trainer, FILE_NAME, path.parent, _is_no_record(path) if trainer.is_global_zero else None)
        if self.plan.save_images is not None:
            can_write(trainer, "Images", Path(self.plan.save_images))
        with evaluating(trainer, pl_module):
            record = self._evaluator.evaluate(pl_module, shard, weights, str(trainer.precision))
        figures = {name: figure.value for name, figure in record.figures.items() if "_std" not in name}
        broken = [name for name, value in figures.items() if not math.isfinite(value)]
        if broken and trainer.state.fn != TrainerFn.FITTING:
            raise EvaluationError(
                f"{', '.join(broken)}: not finite, and no record is written; {why_not_finite(pl_module)}."
            )
        self.latest = record
        line = ", ".join(record.in_words())
        words = weights_in_words(trainer, pl_module)
        each = self.plan.images_per_class
        number = f"{self.plan.num_images} generated images a split" if each is None else f"{each} images a class"
        made = number if self.plan.metrics else "Variational bound"
        verdict = "".join(f"{verdict}. ".capitalize() for verdict in record.verdicts)
        rank_zero_info(f"{verdict}{made}, {words}: {line}")
        if writes and self._write(record, path, trainer):
            self.written = path
            rank_zero_info(f"Record of the evaluation: {path}")
        return figures

    def _write(self, record: EvaluationRecord, path: Path, trainer: pl.Trainer) -> bool:
        problem = None
        if trainer.is_global_zero:
            try:
                record.write(path)
                _tell_loggers(trainer, record, path)
            except (EvaluationError, OSError) as error:  # the disk became full meanwhile
                problem = str(error)
        return can_write(trainer, FILE_NAME, path.parent, problem)


def _model_record(trainer: pl.Trainer, pl_module: pl.LightningModule) -> ModelRecord:
    """Which weights are evaluated: the trained ones, the averaged ones, or a checkpoint's."""
    fitting, averaging = trainer.state.fn == TrainerFn.FITTING, averaging_of(trainer)
    averaged = averaging is not None and averaging.holds(pl_module)
    record = model_record(pl_module, None if fitting else trainer.ckpt_path)
    if record.checkpoint is not None or not (fitting or averaged):
        return record
    options = {} if averaging is None else averaging.state_dict()
    of_run = getattr(pl_module, "fingerprint", None)
    return replace(
        record,
        global_step=trainer.global_step,
        weights="averaged" if averaged else "raw",
        averaging_decay=options.get("decay"),
        averaging_warmup=options.get("warmup"),
        **hashes_of(of_run)._asdict(),
    )


def _record_path(record: str | os.PathLike[str] | None, trainer: pl.Trainer, model: ModelRecord) -> Path:
    """The file that was asked for, or `fid.json` next to the evaluated checkpoint or those that the run writes.

    Where the record of another run has that name, it is `fid-v1.json`, and so on. All ranks call it, because Lightning
    broadcasts its log folder from the first rank.
    """
    if record is not None:
        return local_path(record, "record")
    if trainer.state.fn != TrainerFn.FITTING and trainer.ckpt_path is not None:
        folder = Path(trainer.ckpt_path).parent
    else:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        folders = [callback.dirpath for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        folder = Path(next((f for f in folders if f), None) or trainer.log_dir or trainer.default_root_dir)
    stem, suffix = Path(FILE_NAME).stem, Path(FILE_NAME).suffix
    versions = (folder / (f"{stem}-v{version}{suffix}" if version else FILE_NAME) for version in itertools.count())
    own = next(path for path in versions if not _is_of_another_run(path, model)) if trainer.is_global_zero else None
    return Path(trainer.strategy.broadcast(own))  # type: ignore[arg-type]


def _is_of_another_run(path: Path, model: ModelRecord) -> bool:
    """Whether a file is the record of a run that is known, and is not this one."""
    try:
        recorded = read_json(path)["model"]["run_sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return False  # no record, or one that does not say its run
    return recorded is not None and recorded != model.run_sha256


def _is_no_record(path: Path) -> str | None:
    """Why a file is not replaced: it is something else than the record of an evaluation."""
    try:
        is_record = not path.exists() or "schema" in read_json(path)
    except (OSError, ValueError, TypeError):
        is_record = False
    return None if is_record else f"{path.name} is there already, and is not the record of an evaluation"


def _tell_loggers(trainer: pl.Trainer, record: EvaluationRecord, path: Path) -> None:
    lines = "\n".join(f"- {line}" for line in (*record.verdicts, *record.in_words()))
    text = f"{lines}\n\n```json\n{path.read_text()}\n```"
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(FILE_NAME, text, trainer.global_step)
