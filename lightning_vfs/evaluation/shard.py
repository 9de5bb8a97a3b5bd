"""What one rank does of a job, and how long its parts take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from lightning_vfs.core.progress import progress
from lightning_vfs.training.ranks import world_size


@dataclass(frozen=True)
class RankShard:
    """One rank's part of an evaluation: every `world_size`-th sample from `rank`, in batches, on its device.

    Attributes:
        batch_size: samples in a batch.
        device: of this rank.
        show_progress: whether the first rank shows progress bars.
        rank: this process's, in torch.distributed where that is initialized.
        world_size: number of processes.
        seconds: time taken so far, by what was done.
    """

    batch_size: int
    device: torch.device
    show_progress: bool = False
    rank: int = field(default_factory=lambda: torch.distributed.get_rank() if world_size() > 1 else 0)
    world_size: int = field(default_factory=world_size)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def batches(self, total: int, doing: str) -> Iterator[np.ndarray]:
        """This rank's global sample indices below `total`, with a progress bar."""
        mine = np.arange(self.rank, total, self.world_size)
        bar = progress(doing, len(mine), "images", unit="image", disable=not self.show_progress or self.rank > 0)
        with closing(bar):
            for start in range(0, len(mine), self.batch_size):
                batch = mine[start : start + self.batch_size]
                yield batch
                bar.update(len(batch))

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Add the time taken inside to `seconds`."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds[what] += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
