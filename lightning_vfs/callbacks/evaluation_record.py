"""The record of an evaluation, out of what the callback, the trainer and the model are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vfs.core.files import file_sha256
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.evaluation.real_images import RESIZE
from lightning_vfs.evaluation.record import (
    DataRecord,
    EnvironmentRecord,
    EvaluationRecord,
    FeaturesRecord,
    Figure,
    MetricsRecord,
    ModelRecord,
    SamplingRecord,
    versions,
)
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.evaluation.split import SplitResult
from lightning_vfs.metrics.fidelity import FidelityOptions
from lightning_vfs.training.averaging import EMACallback, averaging_of
from lightning_vfs.training.device import memory_format

if TYPE_CHECKING:
    from lightning_vfs.callbacks.fid import FIDCallback

FILE_NAME = "fid.json"
ROUNDING = "(x + 1) * 127.5, rounded to nearest, half to even, cut to 0..255"


def write_record(
    callback: FIDCallback,
    trainer: pl.Trainer,
    pl_module: Any,
    data: SetDataModule,
    figures: Mapping[str, Figure],
    results: Mapping[str, SplitResult],
    share: RankShard,
    shots: int | None,
    path: Path,
) -> None:
    """Write the record, on the first rank, and tell the loggers of it.

    Args:
        figures: by the names that they are logged under.
        results: of every split.
        share: holds the time taken.
        shots: images in a support; None for a model that takes none.
        path: see `record_path`.
    """
    sampling = callback.sampling
    record = EvaluationRecord(
        figures=dict(figures),
        model=_model(trainer, pl_module),
        data=DataRecord(type(data).__name__, data.image_size, data.channels),
        splits={name: result.record for name, result in results.items()},
        sampling=SamplingRecord(
            sampler=sampling.sampler,
            steps=sampling.steps,
            eta=sampling.eta if sampling.takes_eta else None,
            guidance=sampling.guidance_scale if sampling.is_guided else None,
            guidance_interval=sampling.guidance_interval if sampling.is_guided else None,
            shots=shots,
            held_out=None if shots is None else pl_module.config.sets.held_out,
            precision=str(trainer.precision),
            float32_matmul_precision=torch.get_float32_matmul_precision(),
            memory_format=memory_format(pl_module),
            seed=callback.seed,
        ),
        features=FeaturesRecord(
            extractor=callback.feature_extractor,
            layers=callback.features.layers,
            weights_sha256=callback.features.weights_sha256,
            dtype=callback.features.dtype,
            resize=RESIZE,
            rounding=ROUNDING,
        ),
        metrics=_metrics(callback),
        likelihood={name: result.likelihood for name, result in results.items() if result.likelihood is not None},
        environment=EnvironmentRecord(
            world_size=trainer.world_size,
            batch_size=callback.batch_size,
            device=_device_name(share.device),
            generation_seconds=round(share.seconds["generation"], 3),
            features_seconds=round(share.seconds["features"], 3),
            distance_seconds=round(share.seconds["distance"], 3),
            versions=versions(),
        ),
        notes=tuple(note for result in results.values() for note in result.notes),
    )
    record.write(path)
    rank_zero_info(f"Record of the evaluation: {path}")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("fid.json", f"```json\n{path.read_text()}\n```", trainer.global_step)


def _model(trainer: pl.Trainer, pl_module: Any) -> ModelRecord:
    fitting = trainer.state.fn == TrainerFn.FITTING
    checkpoint = None if fitting else trainer.ckpt_path
    averaging = averaging_of(trainer)
    state: Mapping[str, Any] = {}
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    trained_here = averaging is not None and averaging.holds(pl_module)
    if checkpoint is None:
        averaged = trained_here
    else:
        averaged = "averaging_state" in state and not getattr(pl_module, "takes_raw_weights", False)
    options: Mapping[str, Any] = state.get("callbacks", {}).get(EMACallback.__qualname__, {})
    if checkpoint is None and averaging is not None:
        options = averaging.state_dict()
    return ModelRecord(
        checkpoint=None if checkpoint is None else str(checkpoint),
        checkpoint_sha256=None if checkpoint is None else file_sha256(checkpoint),
        global_step=trainer.global_step if fitting or trained_here else state.get("global_step"),
        weights="averaged" if averaged else "raw",
        averaging_decay=options.get("decay"),
        averaging_warmup=options.get("warmup"),
        autoencoder_sha256=pl_module.autoencoder.weights_sha256 if pl_module.config.latent.autoencoder else None,
    )


def _metrics(callback: FIDCallback) -> MetricsRecord:
    options, metrics = callback.options, callback.metrics
    return MetricsRecord(
        kid_subsets=options.kid_subsets if "kid" in metrics else None,
        kid_subset_size=options.kid_subset_size if "kid" in metrics else None,
        kid_seed=options.rng_seed if "kid" in metrics else None,
        isc_splits=options.isc_splits if "isc" in metrics else None,
        prc_neighborhood=options.prc_neighborhood if "prc" in metrics else None,
        few_shot_way=max(callback.ways, default=None),
        kid_kernel=_kernel(options) if "kid" in metrics else None,
        isc_order=_order(options) if "isc" in metrics else None,
    )


def _kernel(options: FidelityOptions) -> str:
    gamma = "1 / d" if options.kid_kernel_poly_gamma is None else options.kid_kernel_poly_gamma
    return f"({gamma} x.y + {options.kid_kernel_poly_coef0}) ^ {options.kid_kernel_poly_degree}"


def _order(options: FidelityOptions) -> str:
    return f"shuffled by seed {options.rng_seed}" if options.samples_shuffle else "as generated"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def record_path(callback: FIDCallback, trainer: pl.Trainer) -> Path:
    """The file that was asked for, or `fid.json` beside the checkpoint that is evaluated or those that the run writes.

    To be called by all ranks: Lightning tells the folder of its logs from the first to the others.
    """
    if callback.record is not None:
        return Path(callback.record)
    if trainer.state.fn != TrainerFn.FITTING and trainer.ckpt_path is not None:
        return Path(trainer.ckpt_path).parent / FILE_NAME
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    folders = [callback.dirpath for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    folder = next((folder for folder in folders if folder), None) or trainer.log_dir or trainer.default_root_dir
    return Path(folder) / FILE_NAME
