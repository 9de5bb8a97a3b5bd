"""One of two ranks of test_ranks.py on simulated GPUs: `python gpu_process.py <rank> <port> <folder>`.

Their process group serves tensors of a GPU alone, as NCCL's does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch_fidelity.registry import register_feature_extractor

from lightning_vfs import VFSDDPM
from lightning_vfs.callbacks import FIDCallback, SampleGridCallback
from lightning_vfs.training.nonfinite import SetLosses, _Batch, _report, _Step
from lightning_vfs.training.ranks import gather_rows
from tests.callbacks.conftest import CONFIG, TINY, Patterns, TinyExtractor
from tests.simulated_gpu import GPU, simulated_gpu


class SimulatedAccelerator(CPUAccelerator):
    """Lightning's own looks for a driver."""

    def setup_device(self, device: torch.device) -> None:
        pass


def trainer_of(folder: Path, world_size: int) -> pl.Trainer:
    callbacks = [
        FIDCallback(feature_extractor=TINY, num_images=31, few_shot_way=5, steps=2, batch_size=7, vlb_images=3),
        SampleGridCallback(num_classes=2, num_images=2, steps=2),
    ]
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
    if world_size > 1:
        options = {
            "accelerator": SimulatedAccelerator(), "devices": world_size, "plugins": [LightningEnvironment()],
            "strategy": "ddp",
        }  # fmt: skip
    trainer = pl.Trainer(
        logger=False, enable_model_summary=False, enable_progress_bar=False, enable_checkpointing=False,
        default_root_dir=folder, callbacks=callbacks, use_distributed_sampler=False, inference_mode=False,
        **options,
    )  # fmt: skip
    if world_size > 1:
        trainer.strategy.parallel_devices = [GPU] * world_size
    return trainer


def evaluated(folder: Path, world_size: int) -> tuple[dict[str, float], VFSDDPM]:
    torch.manual_seed(0)
    model = VFSDDPM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trainer = trainer_of(folder, world_size)
    trainer.test(model, datamodule=Patterns(), verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}, model


def report_of_the_guard(rank: int, model: VFSDDPM) -> str:
    """Of a step whose loss is infinite by a set of each rank."""
    loss = torch.full((1,), torch.inf, device="cuda")
    one = torch.full((1,), rank, device="cuda")
    mean = gather_rows(loss).mean()
    step = _Step(1, 0, [_Batch(0, mean, SetLosses(one, one, loss, None))], mean, bad=True)  # type: ignore[arg-type]
    return _report(step, model)


def main() -> None:
    rank, port, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    register_feature_extractor(TINY, TinyExtractor)
    found: dict[str, Any] = {"alone": evaluated(folder / f"alone {rank}", 1)[0]}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": "0"}
    # Lightning would ask for a driver; it takes a group that is there.
    dist.init_process_group("cuda:gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
    # By its name Lightning knows that it has no mean of integers.
    with mock.patch("torch.distributed.get_backend", return_value="gloo"), simulated_gpu(float64=False):
        found["together"], model = evaluated(folder / "together", 2)
        model.trainer.datamodule = None  # which would describe the sets by their images
        found["report"] = report_of_the_guard(int(rank), model.cuda())
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
