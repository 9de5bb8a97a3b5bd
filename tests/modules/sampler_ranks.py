"""One of two ranks that train on halves of the same batches; it writes down what its timestep sampler has learned."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_vfs import VFSDDPM
from lightning_vfs.modules import OptimizerConfig
from tests.conftest import tiny_config

TIMESTEPS, BATCHES, SETS = 4, 12, 8


class Recorded(VFSDDPM):
    """Keeps its weights: what is learned is the sampler's alone."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def model_of() -> Recorded:
    torch.manual_seed(0)
    diffusion = {"timesteps": TIMESTEPS, "timestep_sampling": "loss_second_moment", "contrastive_weight": 0.1}
    return Recorded(tiny_config(2, diffusion=diffusion), OptimizerConfig()).train()


def batch_of(step: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
    """This rank's part of a batch of 8 sets of 2 images."""
    images = torch.randn(SETS, 2, 3, 8, 8, generator=torch.Generator().manual_seed(step)).clamp(-1, 1)
    mine = slice(rank * SETS // world_size, (rank + 1) * SETS // world_size)
    return {"images": images[mine], "index": (torch.arange(SETS) + SETS * step)[mine]}


def main(rank: int, folder: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    model = model_of()
    trainer.fit(model, DataLoader([batch_of(step, rank, 2) for step in range(BATCHES)], batch_size=None))
    torch.save(model.timestep_sampler.state_dict(), folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]))
