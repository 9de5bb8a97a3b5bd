"""How time and memory of a training step grow with model, set size, batch and ranks, and what the shapes predict.

Around the case of train_step.py (image 32, patch 4, encoder 256 x 3, DiT 384 x 6, 4 sets of 6) one thing at a time is
changed. A step is loss, backward, gradient clipping and AdamW, not compiled: float32 on one thread of a CPU, bf16
autocast on a GPU. Time is predicted from the counted operations at the rate that the case itself has, memory from the
counted activations with weights, gradients and moments. Every case has processes of its own. Memory is what tensors
take on a GPU; on a CPU what the process grows by, with an allocator that returns at once what is freed.

Ranks: every rank has the case's batch, and DDP (gloo on a CPU, nccl on GPUs) averages the gradients. In turns, a rank
alone, as many unconnected processes at the same time (what the machine's shared memory leaves at best), and DDP.

    python benchmarks/scaling.py [--device cuda] [--ranks 2] [--out benchmarks/results/scaling_cpu.json]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from report import report
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from train_step import CASE, matmul_rate, timed

from lightning_vfs.core import DenoiserConfig, VFSConfig
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.modules.cost import activation_bytes, step_flops, step_operations
from lightning_vfs.training.step import TrainingStep


class Case(NamedTuple):
    """A model, sets in a batch, and whether blocks compute their activations again."""

    config: VFSConfig
    sets: int = 4
    checkpoint: bool = False


def dit(dim: int, depth: int) -> VFSConfig:
    """The case with a denoiser of another size, 64 channels a head."""
    return replace(CASE, denoiser=replace(CASE.denoiser, dim=dim, depth=depth, heads=dim // 64))


def sets_of(set_size: int) -> VFSConfig:
    return replace(CASE, sets=replace(CASE.sets, set_size=set_size))


UNET = replace(
    CASE,
    denoiser=DenoiserConfig("unet", channels=64, channel_mult=(1, 2, 3, 4), attention_resolutions=(16, 8), heads=4),
)
CASES = {
    "the case": Case(CASE),
    "DiT 192 x 4": Case(dit(192, 4)),
    "DiT 384 x 12": Case(dit(384, 12)),
    "DiT 768 x 12": Case(dit(768, 12)),
    "UNet 64 (1, 2, 3, 4)": Case(UNET),
    "sets of 3": Case(sets_of(3)),
    "sets of 12": Case(sets_of(12)),
    "1 set": Case(CASE, 1),
    "2 sets": Case(CASE, 2),
    "8 sets": Case(CASE, 8),
    "checkpointed": Case(CASE, checkpoint=True),
    "checkpointed, 8 sets": Case(CASE, 8, checkpoint=True),
    "checkpointed DiT 384 x 12": Case(dit(384, 12), checkpoint=True),
}
TINY = replace(
    CASE,
    sets=replace(CASE.sets, image_size=8),
    encoder=replace(CASE.encoder, dim=16, dim_head=4),
    denoiser=replace(CASE.denoiser, dim=12, heads=3),
)
"""The case's operations without their work: what is left is the host's."""

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "ddp, gradient_as_bucket_view, static_graph": {"gradient_as_bucket_view": True, "static_graph": True},
}


class Loss(nn.Module):
    """A model's loss as its forward, which is what DDP wraps."""

    def __init__(self, model: VFSDDPM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model.batch_loss(batch)


def make_step(
    case: Case, device: torch.device, rank: int = 0, ddp: dict[str, Any] | None = None
) -> Callable[[], object]:
    """A training step of a fresh model on this rank's batch; with options of DDP, one that averages gradients."""
    torch.manual_seed(0)
    loss = Loss(VFSDDPM(case.config, checkpoint_activations=case.checkpoint)).to(device).train()
    network = loss if ddp is None else DistributedDataParallel(loss, **ddp)
    sets = case.config.sets
    images = torch.rand(case.sets, sets.set_size, 3, sets.image_size, sets.image_size, device=device) * 2 - 1
    batch = {"images": images, "index": torch.arange(case.sets, device=device) + rank * case.sets}
    step = TrainingStep(loss.model, network, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return lambda: step(batch)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


# -- one process: model, set size, batch ------------------------------------------------------------------------------


def seconds_of(case: Case, device: torch.device, steps: int, turns: int) -> float:
    """Seconds of a step in the fastest turn; in a process of its own."""
    torch.set_num_threads(1)
    step = make_step(case, device)
    timed(step, 2, device)
    return min(timed(step, steps, device) for _ in range(turns)) / steps


def bytes_of(case: Case, device: torch.device) -> int:
    """Bytes of a step at its most; in a process of its own."""
    torch.set_num_threads(1)
    timed(make_step(Case(TINY, 1), device), 2, device)  # libraries and their buffers are not the case's
    before = memory(device)
    reset_peak(device)
    timed(make_step(case, device), 2, device)
    return memory(device, peak=True) - before


def memory(device: torch.device, peak: bool = False) -> int:
    """Bytes of tensors on a GPU, or of this process; now, or at the most since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    name = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def describe(case: Case, seconds: float, peak: int, rate: float, device: torch.device) -> dict[str, float]:
    """What was measured of a case, and what its shapes predict, given a rate in FLOP/s."""
    images = case.sets * case.config.sets.set_size
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    flops = step_flops(case.config, case.sets)
    activations = activation_bytes(case.config, case.sets, precision, case.checkpoint)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in VFSDDPM(case.config).parameters())
    predicted = 16 * parameters + activations  # weights, gradients and two moments, 4 bytes each
    return {
        "parameters_m": round(parameters / 1e6, 2),
        "images": images,
        "gflop_per_image": round(flops / images / 1e9, 3),
        "ms_per_image": round(1000 * seconds / images, 2),
        "gflop_per_second": round(flops / seconds / 1e9, 1),
        "time_over_predicted": round(seconds * rate / flops, 2),
        "activations_mib_per_image": round(activations / images / 2**20, 2),
        "memory_mib": round(peak / 2**20),
        "memory_over_predicted": round(peak / predicted, 2),
    }


def in_one_process(device: torch.device, steps: int, turns: int) -> dict[str, Any]:
    """Every case, measured and predicted."""
    seconds = {name: in_fresh_process(seconds_of, case, device, steps, turns) for name, case in CASES.items()}
    host = in_fresh_process(seconds_of, Case(TINY, 1), device, steps, turns) / step_operations(TINY)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # glibc keeps no larger block that is freed
    peaks = {name: in_fresh_process(bytes_of, case, device) for name, case in CASES.items()}
    del os.environ["MALLOC_MMAP_THRESHOLD_"]  # it makes steps slower
    rate = step_flops(CASE, CASES["the case"].sets) / seconds["the case"]
    return {
        "host_us_per_operation": round(1e6 * host, 1),
        "cases": {name: describe(case, seconds[name], peaks[name], rate, device) for name, case in CASES.items()},
    }


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# -- ranks ------------------------------------------------------------------------------------------------------------


def run_rank(rank: int, ranks: int, device: torch.device, steps: int, turns: int, folder: str) -> None:
    """Rank `rank` of all: in turns alone (rank 0), beside the others, and together with them; rank 0 writes seconds."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    case = CASES["the case"]
    alone = make_step(case, device, rank)
    together = {name: make_step(case, device, rank, ddp) for name, ddp in STRATEGIES.items()}
    for step in (alone, *together.values()):
        timed(step, 2, device)
    seconds: dict[str, list[float]] = {name: [] for name in ("alone", "beside", *STRATEGIES)}
    for _ in range(turns):
        dist.barrier()
        if rank == 0:
            seconds["alone"].append(timed(alone, steps, device) / steps)
        for name, step in {"beside": alone, **together}.items():
            dist.barrier()
            seconds[name].append(timed(step, steps, device) / steps)
    dist.barrier()
    if rank == 0:
        torch.save(seconds, Path(folder) / "seconds.pt")
    dist.destroy_process_group()


def in_ranks(ranks: int, device: torch.device, steps: int, turns: int) -> dict[str, Any]:
    """Seconds of a step, and efficiency: images a second of all ranks over those of as many ranks alone."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (ranks, device, steps, turns, folder), nprocs=ranks)
        seconds = torch.load(Path(folder) / "seconds.pt")
    others = [name for name in seconds if name != "alone"]
    return {
        "ranks": ranks,
        "step_seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "efficiency": {name: round(median(seconds["alone"]) / median(seconds[name]), 3) for name in others},
        "efficiency_of_fastest": {name: round(min(seconds["alone"]) / min(seconds[name]), 3) for name in others},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2, help="0 leaves them out")
    parser.add_argument("--only_ranks", action="store_true", help="leave the cases of one process out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    result: dict[str, Any] = {"matmul_gflops": round(matmul_rate(precision, device))}
    if not args.only_ranks:
        result |= in_one_process(device, args.steps, args.turns)
    if args.ranks:
        result["scaling"] = in_ranks(args.ranks, device, args.steps, args.turns)
    report(result, device, args.out)


if __name__ == "__main__":
    main()
