"""What a training run takes on GPUs, from its configuration: time, memory, and what bounds it. A calculation, no more.

    python scripts/training_cost.py configs/unet.yaml --ranks 1 8 --data.batch_size 64 --trainer.max_steps 100000

Flags that are not the script's own are those of `lightning-vfs fit`, and stand in for values of the configuration.
`data.batch_size` is that of one rank: more ranks share its sets, as they have to for the same training. A step takes
the longer of these:

- the device: counted operations at a share (MFU) of the peak rate; after it the gradients' exchange in a ring, at the
  slower share if nothing overlapped, at the faster one if everything did;
- the host, unless the model is compiled: a time for every operation that it starts.

Without a configuration it writes the tables of docs/scaling.md, of what benchmarks/scaling.py measured and of the runs
below, or with --check says whether they are up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from lightning_vfs.core import VFSConfig
from lightning_vfs.modules import FewShotDiffusion
from lightning_vfs.modules.cost import activation_bytes, step_flops, step_operations

ROOT = Path(__file__).parents[1]
PAGE, MEASURED = ROOT / "docs" / "scaling.md", ROOT / "benchmarks" / "results" / "scaling_cpu.json"

FSDM = [
    "--data.set_size=5", "--model.config.encoder.architecture=vit", "--model.config.denoiser.channels=64",
    "--model.config.denoiser.channel_mult=[1,2,3,4]",
]  # fmt: skip
CIFAR = ["--data.batch_size=32", "--trainer.max_steps=200000"]
CELEBA = ["--data.image_size=64", "--data.batch_size=8", "--trainer.max_steps=150000"]
RUNS = {
    "CIFAR-100, FSDM's UNet": ("configs/unet.yaml", [*CIFAR, *FSDM]),
    "CIFAR-100, `configs/unet.yaml`": ("configs/unet.yaml", CIFAR),
    "CIFAR-100, DiT of `configs/folders.yaml`": ("configs/folders.yaml", CIFAR),
    "CelebA, FSDM's UNet": ("configs/unet.yaml", [*CELEBA, *FSDM, "--model.config.encoder.patch_size=16"]),
    "CelebA, `configs/unet.yaml`": ("configs/unet.yaml", [*CELEBA, "--model.config.encoder.patch_size=16"]),
    "CelebA, DiT of `configs/folders.yaml`, patches of 4": (
        "configs/folders.yaml",
        [*CELEBA, "--model.config.denoiser.patch_size=4"],
    ),
}
"""Runs of the table: a configuration, and what differs from it."""


class Machine(NamedTuple):
    """GPUs and their host: dense FLOP/s, MFU from low to high, bytes a second of a link, seconds per operation."""

    peak: float
    mfu: tuple[float, float]
    bandwidth: float
    host: float


class Run(NamedTuple):
    """A training run: its model, sets of a step over all ranks, and how memory is spent."""

    config: VFSConfig
    sets: int
    steps: int
    averages: bool
    checkpoint_activations: bool

    @property
    def parameters(self) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in FewShotDiffusion(self.config).parameters())


def read(path: Path, flags: Sequence[str]) -> Run:
    """The run of a configuration with flags of `fit` in place of some of its values."""
    values = yaml.safe_load(path.read_text())
    for name, value in pairs(flags):
        *parents, last = name.replace("data.", "data.init_args.", 1).split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = yaml.safe_load(value)
    model, data, trainer = values["model"], values["data"]["init_args"], values["trainer"]
    config = VFSConfig.for_data(model["config"], data)
    averages = any("EMACallback" in callback["class_path"] for callback in trainer.get("callbacks", []))
    if "max_steps" not in trainer:
        sys.exit(f"{path} has no trainer.max_steps: give --trainer.max_steps.")
    return Run(config, data["batch_size"], trainer["max_steps"], averages, model.get("checkpoint_activations", False))


def pairs(flags: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values of `--name=value` and `--name value`."""
    words = [word for flag in flags for word in flag.split("=", 1)]
    if len(words) % 2 or not all(name.startswith("--") for name in words[::2]):
        sys.exit(f"These are no flags with values: {' '.join(flags)}")
    return [(name[2:], value) for name, value in zip(words[::2], words[1::2], strict=True)]


def on_ranks(run: Run, ranks: int, machine: Machine) -> dict[str, str]:
    """A row of the table: what the run takes on this number of ranks."""
    if run.sets % ranks:
        sys.exit(f"{run.sets} sets a step cannot be shared by {ranks} ranks: give another --data.batch_size.")
    sets, weights = run.sets // ranks, 4 * run.parameters
    copies = 4 + run.averages + (ranks > 1)  # weights, gradients, two moments; average; buckets of DDP
    activations = activation_bytes(run.config, sets, torch.bfloat16, run.checkpoint_activations)
    device = [step_flops(run.config, sets) / (machine.peak * share) for share in machine.mfu]
    exchange = 2 * (ranks - 1) / ranks * weights / machine.bandwidth
    host = step_operations(run.config) * machine.host
    hours = [run.steps * seconds / 3600 for seconds in (device[1], device[0] + exchange, host)]
    return {
        "GPUs": str(ranks),
        "images per GPU and step": str(sets * run.config.sets.set_size),
        "GiB per GPU": f"{(copies * weights + activations) / 2**30:.1f}",
        "ms of exchange per step": f"{1000 * exchange:.2f}",
        "hours by the device": f"{hours[0]:.2f} to {hours[1]:.2f}",
        "hours by the host": f"{hours[2]:.2f}",
    }


def summary(run: Run) -> str:
    """One line: the model and the work that it is."""
    per_image = step_flops(run.config) / run.config.sets.set_size
    images = run.sets * run.config.sets.set_size
    return (
        f"{run.parameters / 1e6:.1f} M parameters, {per_image / 1e9:.1f} GFLOP an image, {run.steps:,} steps of "
        f"{run.sets} sets of {run.config.sets.set_size}: {run.steps * images * per_image / 1e18:.2f} EFLOP"
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def calculated(ranks: Sequence[int], machine: Machine) -> str:
    """What the runs take on this number of ranks."""
    rows, models = [], []
    for name, (path, flags) in RUNS.items():
        run = read(ROOT / path, flags)
        models.append(f"- {name}: {summary(run)}.\n")
        rows += [{"run": name} | on_ranks(run, number, machine) for number in ranks]
    return "".join(models) + "\n" + markdown(rows)


def measured_cases() -> str:
    found = json.loads(MEASURED.read_text())
    rows = [
        {
            "case": name,
            "parameters": f"{case['parameters_m']:.1f} M",
            "GFLOP per image": f"{case['gflop_per_image']:.1f}",
            "ms per image": f"{case['ms_per_image']:.0f}",
            "measured / predicted time": f"{case['time_over_predicted']:.2f}",
            "activations per image, MiB": f"{case['activations_mib_per_image']:.1f}",
            "memory, MiB": f"{case['memory_mib']:,}",
            "measured / predicted memory": f"{case['memory_over_predicted']:.2f}",
        }
        for name, case in found["cases"].items()
    ]
    rate, product = found["cases"]["the case"]["gflop_per_second"], found["matmul_gflops"]
    return (
        f"{markdown(rows)}\nThe first row computes {rate:.0f} GFLOP/s, {rate / product:.0%} of what a matrix product "
        f"alone reaches there.\nAn operation on tiny tensors takes {found['host_us_per_operation']:.0f} µs.\n"
    )


def measured_ranks() -> str:
    scaling = json.loads(MEASURED.read_text())["scaling"]
    seconds = {name: sorted(values)[len(values) // 2] for name, values in scaling["step_seconds"].items()}
    return markdown(
        [
            {
                "step": name if name != "beside" else "beside an unconnected process",
                "seconds": f"{value:.2f}",
                "efficiency": f"{scaling['efficiency'][name]:.1%}" if name != "alone" else "",
            }
            for name, value in seconds.items()
        ]
    )


def page(text: str, tables: dict[str, str]) -> str:
    """The page with these tables between the comments that name them."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: scripts/training_cost.py -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        text = before + begin + table + end + rest.split(end)[1]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--mfu", type=float, nargs=2, default=(0.2, 0.4), help="low and high (assumptions)")
    parser.add_argument("--peak_tflops", type=float, default=989, help="of one GPU; an H100's in bf16, dense")
    parser.add_argument("--bandwidth", type=float, default=450, help="GB/s of a GPU in each direction; NVLink's")
    parser.add_argument("--host_us", type=float, default=10, help="of one operation (an assumption)")
    parser.add_argument("--check", action="store_true")
    args, flags = parser.parse_known_args()
    machine = Machine(args.peak_tflops * 1e12, tuple(args.mfu), args.bandwidth * 1e9, args.host_us * 1e-6)
    if args.config is not None:
        run = read(args.config, flags)
        print(f"{summary(run)}\n\n{markdown([on_ranks(run, number, machine) for number in args.ranks])}", end="")
        return
    tables = {
        "measured cases": measured_cases(),
        "measured ranks": measured_ranks(),
        "calculation": calculated(args.ranks, machine),
    }
    found = PAGE.read_text()
    wanted = page(found, tables)
    if not args.check:
        PAGE.write_text(wanted)
    elif found != wanted:
        sys.exit(f"The tables of {PAGE} are others. Run: python scripts/training_cost.py")


if __name__ == "__main__":
    main()
