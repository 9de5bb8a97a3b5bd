"""RunSummary: the first line of a run."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_summary import get_human_readable_count
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vfs.core.seeding import global_seed
from lightning_vfs.data.module import SetDataModule


class RunSummary(ModelSummary):
    """Say what a run does and on what data: size of the model and its parts, device, precision, seed, checkpoint.

    It replaces Lightning's table, whose sizes assume 32 bits and whose FLOPs are 0 without an example.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._say("Training", trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._say("Validating", trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._say("Testing", trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._say("Predicting with", trainer, pl_module)

    def _say(self, doing: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start = f" from {trainer.ckpt_path}" if trainer.ckpt_path else ""
        rank_zero_info(
            f"{doing} a model of {_parameters(pl_module)}{start} on {_devices(trainer)}, "
            f"precision {trainer.precision}, seed {global_seed()}."
        )
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SetDataModule):
            rank_zero_info(f"Data: {data.describe()}")


def _parameters(module: torch.nn.Module) -> str:
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()}
    parts = ", ".join(f"{name} {get_human_readable_count(size)}" for name, size in sizes.items() if size)
    return f"{get_human_readable_count(sum(p.numel() for p in module.parameters()))} parameters ({parts})"


def _devices(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    name = f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    return name if trainer.world_size == 1 else f"{trainer.world_size} ranks of {name}"
