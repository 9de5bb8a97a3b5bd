"""Sets that make a loss infinite; and two ranks that meet one: `python nonfinite_ranks.py <rank> <port> <folder>`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image
from torch import Tensor

from lightning_vfs import VFSDDPM
from lightning_vfs.core.errors import NonFiniteLossError
from lightning_vfs.data import FolderSets
from lightning_vfs.modules import OptimizerConfig
from tests.conftest import tiny_config

SETS = 6
"""Of an epoch: one of each class, so that one of them is blank."""


class ByContrast(VFSDDPM):
    """Divides the loss of a set by its contrast, and blank images have none."""

    def losses(self, x_set: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        loss, kl = super().losses(x_set, t, *args, **kwargs)
        return loss / contrast_of(x_set), kl


def contrast_of(x_set: Tensor) -> Tensor:
    return x_set.amax(dim=(1, 2, 3, 4)) - x_set.amin(dim=(1, 2, 3, 4))


def write_images(root: Path) -> Path:
    """6 classes of 4 images, one of them blank."""
    rng = np.random.default_rng(0)
    for name in ("blank", "c1", "c2", "c3", "c4", "c5"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((8, 8, 3), 128) if name == "blank" else rng.integers(0, 256, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def data_of(root: Path, position: int, batch_size: int = 2) -> FolderSets:
    """The blank set has this position in the first epoch."""
    for seed in range(999):
        data = FolderSets(
            str(root), set_size=3, image_size=8, batch_size=batch_size, sets_per_epoch=SETS, seed=seed,
            split_fractions=(1, 0, 0),
        )  # fmt: skip
        if [one.class_name for one in data.describe_sets(range(SETS))].index("blank") == position:
            return data
    raise AssertionError("no seed puts it there")


def model_of(kind: type[VFSDDPM] = ByContrast, skip: bool = False) -> VFSDDPM:
    torch.manual_seed(0)
    model = kind(tiny_config(3), OptimizerConfig(warmup_steps=0, decay_steps=20), skip_nonfinite=skip)
    with torch.no_grad():  # where a fresh DiT gives zeros, most gradients are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def trainer_of(**kwargs: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False, **kwargs,
        }
    )  # fmt: skip


def main(rank: int, port: str, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    found: dict[str, Any] = {}
    for name, strategy, skip in (
        ("stopped", "ddp", False),
        ("skipped", "ddp", True),
        ("sharded", ModelParallelStrategy(2, 1, save_distributed_checkpoint=False), True),
    ):
        model, data = model_of(skip=skip), data_of(folder / "images", 3, batch_size=1)
        trainer = trainer_of(devices=2, strategy=strategy, plugins=[LightningEnvironment()])
        try:
            trainer.fit(model, datamodule=data)
            found[name] = {n: float(value) for n, value in trainer.callback_metrics.items()}
        except NonFiniteLossError as error:
            found[name] = str(error)
        weights = {n: getattr(p, "full_tensor", lambda p=p: p)().detach() for n, p in model.named_parameters()}
        found[f"{name} weights"] = weights
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
