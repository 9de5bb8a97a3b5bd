"""Training states as Lightning checkpoints, which `fit --ckpt_path` resumes."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.files import local_path
from lightning_vfs.core.trust import reading
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.modules.declared import check_declared_size
from lightning_vfs.training.averaging import EMACallback
from lightning_vfs.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from lightning_vfs.training.optimizer import build_adamw, warmup_cosine
from lightning_vfs.training.state import Moments, TrainingState, arrays, tensors


def write_lightning(state: TrainingState, path: str | Path) -> None:
    """Write a checkpoint as a run at this step would: raw and averaged weights, AdamW's moments, the step.

    The optimizer's settings are VFSDDPM's defaults, which flags of `fit` replace.

    Raises:
        CheckpointError: the run's optimizer was not AdamW.
    """
    state.check_resumable()
    model = VFSDDPM(state.config)
    model.load_state_dict(tensors(state.weights))
    trainer = _quiet_trainer([_averaging(model, state)] if state.averaged is not None else [])
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    trainer.strategy.connect(model)
    model.trainer = trainer
    optimizer = _optimizer(model, state)
    trainer.strategy.optimizers = [optimizer]
    trainer.strategy.lr_scheduler_configs = [LRSchedulerConfig(_scheduler(model, optimizer, state.step))]
    epoch_loop = trainer.fit_loop.epoch_loop
    # A checkpoint that is written within a step does not count it here yet; Lightning adds it when it resumes.
    epoch_loop._batches_that_stepped = max(0, state.step - 1)
    progress = epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    progress.ready = progress.completed = state.step
    trainer.save_checkpoint(local_path(path, "The checkpoint's path"), weights_only=False)


def _quiet_trainer(callbacks: list[Callback]) -> pl.Trainer:
    """A trainer that only writes checkpoints, without messages about devices."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        return pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            max_epochs=-1,
        )
    finally:
        log.setLevel(level)


def _averaging(model: VFSDDPM, state: TrainingState) -> EMACallback:
    callback = EMACallback()
    callback.start_from(model, tensors(state.averaged or {}), updates=max(1, state.step), step=state.step)
    return callback


def _optimizer(model: VFSDDPM, state: TrainingState) -> torch.optim.AdamW:
    optimizer = build_adamw(model, model.optimizer_config, fused=True)
    if state.moments is not None:
        first, second = tensors(state.moments.first), tensors(state.moments.second)
        for name, parameter in model.named_parameters():
            optimizer.state[parameter] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": first[name],
                "exp_avg_sq": second[name],
            }
    return optimizer


def _scheduler(model: VFSDDPM, optimizer: torch.optim.AdamW, step: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule that has reached a step; its rates are computed by the resumed run, which knows where it ends."""
    factor = functools.partial(warmup_cosine, warmup_steps=0, decay_steps=1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scheduler.last_epoch = step
    return scheduler


def read_lightning(path: str | Path) -> TrainingState:
    """Training state of a Lightning checkpoint of a VFSDDPM.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model.
    """
    checkpoint = read_checkpoint(path)
    config = VFSConfig.from_dict(checkpoint["hyper_parameters"]["config"])
    check_declared_size(config, checkpoint["state_dict"], path)
    averaged = "current_model_state" in checkpoint
    with reading(path):
        return TrainingState(
            config,
            arrays(checkpoint["current_model_state" if averaged else "state_dict"]),
            arrays(checkpoint["state_dict"]) if averaged else None,
            _moments(VFSDDPM(config), checkpoint),
            int(checkpoint.get("global_step", 0)),
            checkpoint["hyper_parameters"].get("optimizer", {}).get("name", "adamw"),
        )


def _moments(model: VFSDDPM, checkpoint: dict[str, Any]) -> Moments | None:
    """AdamW's moments by name, zero for buffers; None if it has taken no step, or was another optimizer."""
    states = checkpoint.get("optimizer_states") or [{"state": {}}]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_adamw(model, model.optimizer_config, fused=False).param_groups
    ordered = [names[id(parameter)] for group in groups for parameter in group["params"]]
    numbers = [i for group in states[0].get("param_groups", ()) for i in group["params"]]
    of_parameter: dict[int, dict[str, Tensor]] = states[0]["state"]
    whole = all({"exp_avg", "exp_avg_sq"} <= set(state) for state in of_parameter.values())
    if len(numbers) != len(ordered) or set(of_parameter) != set(numbers) or not whole:
        return None
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    moments = [
        arrays(zeros | {name: of_parameter[i][moment] for i, name in zip(numbers, ordered, strict=True)})
        for moment in ("exp_avg", "exp_avg_sq")
    ]
    return Moments(*moments)
