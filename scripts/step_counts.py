"""What a training step hands to the device, and how often the host reads a tensor: tables of docs/scaling.md.

Operations are counted by a dispatch mode, in a real step of each configuration at full size with one set, views apart;
one on a list of tensors counts once. The average by Lightning's EMAWeightAveraging is counted too. Reads of
tensors on the host are counted in a run with the command line's callbacks on two ranks.

    python scripts/step_counts.py [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vfs import EMACallback, PreemptionCheckpoint, ThroughputCallback, VFSConfig
from lightning_vfs.callbacks.progress import RunProgressBar
from lightning_vfs.data import GlyphSets
from lightning_vfs.modules import VFSDDPM, OptimizerConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- counts: scripts/step_counts.py -->\n", "<!-- end of counts -->\n"
CONFIGS = ("folders", "unet", "glyphs")
READ = "aten._local_scalar_dense.default"
STEPS, EVERY = 8, 4


class Operations(TorchDispatchMode):
    """Counts operations that are no views, by the part of the step that they are in."""

    def __init__(self) -> None:
        super().__init__()
        self.part = ""
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.namespace not in ("prim", "profiler"):
            self.counts[self.part] += 1
        return func(*args, **(kwargs or {}))


def model_of(name: str) -> VFSDDPM:
    """The model of a shipped configuration, at its full size."""
    values = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    config = VFSConfig.for_data(values["model"]["config"], values["data"]["init_args"])
    return VFSDDPM(config, OptimizerConfig(warmup_steps=0))


class Parts(Callback):
    """Tells the counter where a step is; the last callback except the average."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def on_train_batch_start(self, *_: Any) -> None:
        self.operations.counts.clear()
        self.operations.part = "loss and backward"

    def on_after_backward(self, *_: Any) -> None:
        self.operations.part = "guard, clipping, AdamW"

    def on_train_batch_end(self, *_: Any) -> None:
        self.operations.part = "average"


class Finished(Callback):
    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def on_train_batch_end(self, *_: Any) -> None:
        self.operations.part = "rest"


def operations_of(name: str) -> dict[str, int]:
    """Of a step of a configuration, by part; after the first two, in which optimizer and average make room."""
    operations = Operations()
    model = model_of(name)
    sets = model.config.sets
    batch = torch.rand(3, sets.set_size, sets.channels, sets.image_size, sets.image_size) * 2 - 1
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=3, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Parts(operations), EMACallback(), Finished(operations)],
    )  # fmt: skip
    with operations:
        trainer.fit(model, torch.utils.data.DataLoader(batch, batch_size=1))
    found = {part: operations.counts[part] for part in ("loss and backward", "guard, clipping, AdamW", "average")}
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.999), use_buffers=False)
    average.update_parameters(model)
    with Operations() as theirs:
        average.update_parameters(model)
    return found | {"average by Lightning": theirs.counts[""]}


class Reads(TorchDispatchMode):
    """Counts reads of tensors on the host, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.step: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.step is not None and str(func) == READ:
            self.counts[self.step] += 1
        return func(*args, **(kwargs or {}))


class Steps(Callback):
    def __init__(self, reads: Reads) -> None:
        self.reads = reads

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.reads.step = trainer.global_step + 1

    def on_validation_start(self, *_: Any) -> None:
        self.reads.step = None


def rank(number: int, folder: Path) -> None:
    """A rank of the run whose reads are counted; rank 0 writes them, by step."""
    os.environ |= {"LOCAL_RANK": str(number), "NODE_RANK": "0"}
    reads = Reads()
    data = GlyphSets(set_size=6, image_size=16, batch_size=2, sets_per_epoch=4 * STEPS, eval_sets=2, num_workers=0)
    config = VFSConfig.from_dict({
        "sets": {"set_size": 6, "image_size": 16, "channels": 1},
        "encoder": {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "patch_size": 8},
        "denoiser": {"dim": 24, "depth": 1, "heads": 2, "patch_size": 4},
    })  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=STEPS, log_every_n_steps=EVERY, gradient_clip_val=1.0,
        num_sanity_val_steps=0, use_distributed_sampler=False, logger=CSVLogger(folder),
        enable_model_summary=False,
        callbacks=[
            Steps(reads), RunProgressBar(), EMACallback(), ModelCheckpoint(folder, every_n_train_steps=1000),
            LearningRateMonitor(), ThroughputCallback(), PreemptionCheckpoint(),
        ],
    )  # fmt: skip
    with reads:
        trainer.fit(VFSDDPM(config), datamodule=data)
    if number == 0:
        (folder / "reads.json").write_text(json.dumps({str(step): reads.counts[step] for step in range(1, STEPS + 1)}))


def reads_of_two_ranks() -> dict[int, int]:
    """Reads of a tensor on the host of rank 0, by step."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen([sys.executable, __file__, "--rank", str(number), "--folder", folder], env=env)
            for number in range(2)
        ]
        if any([process.wait() for process in ranks]):
            sys.exit("A rank failed.")
        return {int(step): count for step, count in json.loads(Path(folder, "reads.json").read_text()).items()}


def table(counts: dict[str, dict[str, int]], reads: dict[int, int]) -> str:
    """Markdown."""
    lines = [
        "| operations of a step | loss and backward | guard, clipping, AdamW | average | average in 0.1.0 |",
        "| --- | --- | --- | --- | --- |",
        *(f"| `configs/{name}.yaml` | {' | '.join(f'{n:,}' for n in row.values())} |" for name, row in counts.items()),
        "",
    ]
    between = [count for step, count in reads.items() if step % EVERY and step > 1]
    logged = [count for step, count in reads.items() if not step % EVERY]
    return "\n".join([
        *lines,
        "| reads of a tensor on the host, two ranks | now | 0.1.0 |",
        "| --- | --- | --- |",
        f"| in a step between logged ones | {max(between)} | 5 (progress bar 2, average 2, signals 1) |",
        f"| in a logged step | {max(logged)} | |",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        rank(args.rank, args.folder)
        return
    found = table({name: operations_of(name) for name in CONFIGS}, reads_of_two_ranks())
    print(found)
    if args.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + found + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
