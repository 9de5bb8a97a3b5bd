"""What callbacks that generate images share: the state they evaluate in, and what they ask of the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_vfs.core import requests
from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.training.averaging import averaged_weights
from lightning_vfs.training.sharding import unsharded


@contextmanager
def evaluating(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Averaged weights, evaluation mode, no gradients and the trainer's precision inside; all as it was outside.

    So are the global random number generators: training goes on as if nothing had been evaluated. All ranks enter,
    since the parameters of a sharded model are gathered; inside, each may do something else.
    """
    modes = {module: module.training for module in pl_module.modules()}
    with isolate_rng(), torch.no_grad(), averaged_weights(trainer, pl_module), unsharded(pl_module):
        pl_module.eval()
        try:
            with trainer.precision_plugin.val_step_context():
                yield
        finally:
            for module, training in modes.items():
                module.training = training


def sets_of(trainer: pl.Trainer, caller: Callback) -> SetDataModule:
    """The trainer's data module.

    Raises:
        EvaluationError: the trainer has no data module with splits of classes.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not callable(getattr(data, "split", None)):
        found = "none" if data is None else f"a {type(data).__name__}"
        raise EvaluationError(
            f"{type(caller).__name__} takes supports and real images from a SetDataModule (GlyphSets, FolderSets); "
            f"the trainer has {found}. Pass one: trainer.fit(model, datamodule=...)."
        )
    return data


def check_model(pl_module: Any, data: SetDataModule, sampling: SamplingConfig) -> None:
    """Hold the model against the data and the sampling; not before its checkpoint is loaded, which decides.

    Raises:
        SetSizeMismatchError: the data has sets of another size than the weights.
        EvaluationError: more sampling steps than the diffusion has.
        ConfigError: guidance of a model without a null context.
    """
    pl_module.check_set_size(data.set_size)
    timesteps = pl_module.config.diffusion.timesteps
    if sampling.steps > timesteps:
        raise EvaluationError(
            f"Sampling takes {sampling.steps} steps, but the diffusion has {timesteps}: set steps to at most "
            f"{timesteps}."
        )
    requests.check_guidance(sampling, pl_module.config)


def shots_of(pl_module: Any, data: SetDataModule) -> int:
    """Images in a support: as many as condition one generation in training, with sets of the data's size."""
    sets = pl_module.config.sets
    return min(sets.shots, replace(sets, set_size=data.set_size).shots)
