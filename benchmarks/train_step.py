"""Training speed: images a second of a compiled step in bf16 and in float32, and their ratios to a plain eager float32
step, in one process.

Cases: `small` (image 32, patch 4, encoder 256 x 3, DiT 384 x 6), and `dit_b2`, for GPUs: DiT-B/2, 130 million
parameters, with an encoder of 384 x 6. A step is loss, backward, gradient clipping and AdamW. All are timed in turns,
so that what else the machine does meets each. The rate of a plain matrix product is measured too: it says what
the machine can do, and which precision pays on it. On a GPU whose rate Lightning knows, model FLOPs utilisation is
given; --profile prints the operations that take the most time.

    python benchmarks/train_step.py [--device cuda] [--case dit_b2] [--sets 4] [--profile]
                                    [--out benchmarks/results/train_step_cpu.json]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from report import report
from torch.profiler import profile

from lightning_vfs.core import DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig, VFSConfig
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.modules.cost import step_flops
from lightning_vfs.training.step import TrainingStep

SETS = SetConfig(set_size=6, image_size=32, channels=3)
CASE = VFSConfig(
    SETS,
    EncoderConfig(dim=256, depth=3, heads=4, dim_head=64, mlp_ratio=4.0, patch_size=4),
    DenoiserConfig(dim=384, depth=6, heads=6, patch_size=4),
    DiffusionConfig(),
)
CASES = {
    "small": CASE,
    "dit_b2": VFSConfig(
        SETS,
        EncoderConfig(dim=384, depth=6, heads=6, dim_head=64, mlp_ratio=4.0, patch_size=4),
        DenoiserConfig(dim=768, depth=12, heads=12, patch_size=2),
        DiffusionConfig(),
    ),
}

VARIANTS = {
    "bf16, compiled": (torch.bfloat16, True),
    "float32, compiled": (torch.float32, True),
    "plain": (torch.float32, False),
}


def make_step(
    config: VFSConfig, precision: torch.dtype, compiled: bool, device: torch.device, sets: int
) -> Callable[[], object]:
    """A training step of a fresh model: compiled and with fused AdamW, or plain and eager."""
    torch.manual_seed(0)
    model = VFSDDPM(config, compile=compiled).to(device).train()
    step = TrainingStep(model, model.batch_loss, precision, fused=compiled)
    n, image = config.sets.set_size, (config.sets.channels, config.sets.image_size, config.sets.image_size)
    x_set = torch.rand(sets, n, *image, device=device) * 2 - 1
    batch = {"images": x_set, "index": torch.arange(sets, device=device)}
    return lambda: step(batch)


def matmul_rate(precision: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of the product of the denoiser's MLP: (1536, 384) by (384, 1536)."""
    a, b = (torch.randn(shape, device=device, dtype=precision) for shape in ((1536, 384), (384, 1536)))
    fastest = min(timed(lambda: a @ b, 20, device) for _ in range(5)) / 20
    return 2 * 1536 * 384 * 1536 / fastest / 1e9


def timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds that a number of steps take."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def utilisation(
    config: VFSConfig, sets: int, seconds: float, precision: torch.dtype, device: torch.device
) -> float | None:
    """Share of the device's peak rate that goes into the model's own operations; None where the rate is not known."""
    available = get_available_flops(device, precision) if device.type == "cuda" else None
    return round(step_flops(config, sets) / seconds / available, 3) if available else None


def print_profile(step: Callable[[], None], device: torch.device) -> None:
    """The 20 operations of five steps that take the most time of the device."""
    with profile() as found:
        timed(step, 5, device)
    print(found.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=20, max_name_column_width=80))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", choices=CASES, default="small")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device, config = torch.device(args.device), CASES[args.case]
    images = args.sets * config.sets.set_size
    steps = {name: make_step(config, *variant, device, args.sets) for name, variant in VARIANTS.items()}
    for step in steps.values():
        timed(step, 3, device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.turns):
        for name, step in steps.items():
            seconds[name].append(timed(step, args.steps, device) / args.steps)
    median = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "case": args.case,
        "sets_per_step": args.sets,
        "images_per_second": {name: round(images / value, 1) for name, value in median.items()},
        "fastest_images_per_second": {name: round(images / min(values), 1) for name, values in seconds.items()},
        "mfu": {
            name: utilisation(config, args.sets, value, VARIANTS[name][0], device) for name, value in median.items()
        },
        "ratio_to_plain": {name: round(median["plain"] / value, 2) for name, value in median.items()},
        "matmul_gflops": {str(p): round(matmul_rate(p, device)) for p in (torch.bfloat16, torch.float32)},
        "peak_memory_mib": round(peak / 2**20),
    }
    report(result, device, args.out)
    if args.profile:
        print_profile(steps["bf16, compiled"], device)


if __name__ == "__main__":
    main()
