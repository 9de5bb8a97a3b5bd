"""One of two ranks of which the second alone gets sets of another size; it writes down how its run ended."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_vfs import VFSDDPM
from tests.conftest import tiny_config


def main(rank: int, folder: Path) -> None:
    n = 5 if rank == 1 else 6
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    try:
        trainer.fit(VFSDDPM(tiny_config(6)), DataLoader([torch.zeros(n, 3, 8, 8)] * 8, batch_size=2))
    except BaseException as error:
        (folder / f"rank{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise
    (folder / f"rank{rank}.txt").write_text("finished")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]))
