"""One of two ranks that train $ROWS of the model family for two steps by DDP; it writes its weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.modules.family import Case, cases, every_choice

ROWS = {"every choice": every_choice, "all": cases}


class Loss(torch.nn.Module):
    """A model whose forward pass is its loss, as Lightning wraps one for DDP."""

    def __init__(self, case: Case, autoencoder: Path) -> None:
        super().__init__()
        self.model = case.model(autoencoder).train()

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model.batch_loss(batch)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    lines = []
    for case in ROWS[os.environ["ROWS"]]():
        wrapped = DistributedDataParallel(Loss(case, folder / "autoencoder"))
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-3)
        batch = {name: values[2 * rank : 2 * rank + 2] for name, values in case.batch.items()}
        for _ in range(2):  # the second step is where DDP finds what the first left unused
            optimizer.zero_grad()
            wrapped(batch).backward()
            optimizer.step()
        total = sum(parameter.detach().double().abs().sum() for parameter in wrapped.parameters())
        lines.append(f"{case} {float(total)!r}")
    (folder / f"rank{rank}.txt").write_text("\n".join(lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]))
