"""Every shipped configuration in every precision, at tiny size: what trains, evaluates, samples and resumes.

A cell is three runs by the command line: `fit` for some steps with a validation and pictures, `evaluate` with FID,
`sample`, and `fit` again from the checkpoint in the next precision of the table. They clip by norm with accumulated
gradients, by value with activation checkpointing, or not at all, compiled where that is asked for. Those of
configs/scale/ are by processes of their own, two of them with FSDP2.

    python scripts/precision_matrix.py [--accelerator gpu] [--compile] [--only glyphs.yaml] [--out FILE] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from lightning_vfs.cli import main as command

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- precisions: scripts/precision_matrix.py -->\n", "<!-- end of precisions -->\n"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true", "16-true")
CLIPPING = {
    "norm": ["--trainer.gradient_clip_val=1", "--trainer.accumulate_grad_batches=2"],
    "value": [
        "--trainer.gradient_clip_val=0.1", "--trainer.gradient_clip_algorithm=value",
        "--model.checkpoint_activations=true",
    ],
    "none": ["--trainer.gradient_clip_val=null"],
}  # fmt: skip
DENOISER = ["--model.config.denoiser.dim=24", "--model.config.denoiser.depth=1"]
ENCODER = ["--model.config.encoder.dim=16", "--model.config.encoder.depth=1"]
CONFIGS: dict[str, list[str]] = {
    "folders.yaml": [*ENCODER, *DENOISER],
    "glyphs.yaml": [*ENCODER, *DENOISER],
    "baselines/unconditional.yaml": DENOISER,
    "baselines/class_conditional.yaml": DENOISER,
    "unet.yaml": [
        *ENCODER, "--data.image_size=16", "--model.config.encoder.heads=2", "--model.config.encoder.dim_head=8",
        "--model.config.denoiser.channels=8", "--model.config.denoiser.channel_mult=[1,2]",
        "--model.config.denoiser.num_res_blocks=1",
    ],
    "latent.yaml": [
        *ENCODER, *DENOISER, "--data.image_size=16", "--model.config.encoder.patch_size=4",
        "--model.config.latent.downsampling=2", "--model.config.latent.scale=0.5",
    ],
    "imported.yaml": [],
}  # fmt: skip
SCALE: dict[str, tuple[str, list[str]]] = {
    "scale/one_node.yaml": ("folders.yaml", ["--trainer.devices=1"]),
    "scale/fsdp.yaml": ("latent.yaml", ["--trainer.devices=2", "--trainer.strategy.init_args.data_parallel_size=2"]),
}
"""Configurations that are added to another."""
SHARDED = ("32-true", "bf16-mixed", "bf16-true")
"""Precisions of FSDP2."""


class Bench:
    """A folder with data, an autoencoder and a checkpoint to import, in which the runs take place."""

    def __init__(self, folder: Path, accelerator: str) -> None:
        self.folder, self.accelerator = folder, accelerator
        rng = np.random.default_rng(0)
        for number in range(30):
            (folder / "images" / f"class{number:02d}").mkdir(parents=True)
            for i in range(7):
                picture = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / "images" / f"class{number:02d}" / f"{i}.png")
        self.support = folder / "support"
        self.support.mkdir()
        for i in range(3):
            Image.open(folder / "images" / "class00" / f"{i}.png").save(self.support / f"{i}.png")
        _save_autoencoder(folder / "vae")
        self.imported: Path | None = None

    def fit(self, config: str, name: str, precision: str, *flags: str) -> None:
        """Train one of the shipped configurations, at tiny size."""
        beside: list[str] = []
        if config in SCALE:
            over, (config, more) = config, SCALE[config]
            beside = [f"--config={ROOT / 'configs' / over}", f"--trainer.accelerator={self.accelerator}", *more]
            beside += ["--data.num_workers=0", f"--trainer.precision={precision}"]
        values = yaml.safe_load((ROOT / "configs" / config).read_text())
        for callback in values["trainer"]["callbacks"]:
            options = callback.get("init_args", {})
            if callback["class_path"].endswith("SampleGridCallback"):
                options |= {"every_n_epochs": 1, "num_classes": 1, "num_images": 2, "steps": 2}
            if callback["class_path"].endswith("ModelCheckpoint"):
                options["every_n_train_steps"] = 1
            if callback["class_path"].endswith("FIDCallback"):
                options |= _tiny_evaluation(config)
        for logger in values["trainer"]["logger"]:
            logger["init_args"] |= {"save_dir": str(self.folder / "runs"), "name": name}
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(values))
        every = [
            f"--config={path}", f"--trainer.accelerator={self.accelerator}", "--trainer.devices=1",
            "--data.num_workers=0", "--data.sets_per_epoch=8", "--data.eval_sets=2", "--data.batch_size=2",
            "--model.optimizer.warmup_steps=1", "--trainer.max_epochs=-1", f"--trainer.precision={precision}",
        ]  # fmt: skip
        if config in ("folders.yaml", "imported.yaml"):
            every.append("--data.image_size=8")
        if "FolderSets" in values["data"]["class_path"]:
            every.append(f"--data.root={self.folder / 'images'}")
        if config == "latent.yaml":
            every.append(f"--model.config.latent.autoencoder={self.folder / 'vae'}")
        if config != "imported.yaml":
            every.append("--model.config.diffusion.timesteps=40")
        self.run("fit", *every, *CONFIGS[config], *beside, *flags, alone=bool(beside))

    def run(self, *arguments: str, alone: bool = False) -> None:
        """A command, by a process of its own if need be; raises what it says where it does not end well."""
        if alone:
            process = [sys.executable, "-W", "ignore", "-m", "lightning_vfs", *arguments]
            done = subprocess.run(process, capture_output=True, text=True, check=False)
            if done.returncode:
                found = re.findall(r"^\w+Error: .*", done.stderr, re.MULTILINE)
                raise RuntimeError(found[-1] if found else done.stderr[-500:])
            return
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = command(list(arguments))
        if status:
            raise RuntimeError(said.getvalue().strip().splitlines()[-1])

    def cell(self, config: str, precision: str, clipping: str, after: str, *flags: str) -> str:
        """What became of a configuration in a precision: `yes`, or the error."""
        name = f"{Path(config).stem}-{precision}-{clipping}"
        last = self.folder / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"
        start = []
        if config == "imported.yaml":
            start = [f"--ckpt_path={self.checkpoint_to_import()}"]
        try:
            self.fit(config, name, precision, "--trainer.max_steps=4", *CLIPPING[clipping], *flags, *start)
            evaluation = {"fid": {"feature_extractor": "glyph-cnn", "few_shot_way": 2, **_tiny_evaluation(config)}}
            (self.folder / "fid.yaml").write_text(yaml.safe_dump(evaluation))
            self.run(
                "evaluate", f"--config={self.folder / 'fid.yaml'}", f"--ckpt_path={last}", f"--precision={precision}",
                f"--accelerator={self.accelerator}",
            )  # fmt: skip
            out = f"--out={last.parent / 'out'}"
            self.run("sample", f"--ckpt_path={last}", out, *self.condition(config), "--steps=2")
            self.fit(config, name, after, "--trainer.max_steps=6", *CLIPPING[clipping], *flags, f"--ckpt_path={last}")
        except (RuntimeError, SystemExit) as error:
            return str(error)
        return "yes"

    def condition(self, config: str) -> list[str]:
        if "unconditional" in config:
            return []
        return ["--label=3"] if "class_conditional" in config else [f"--support={self.support}"]

    def checkpoint_to_import(self) -> Path:
        """Of a run of configs/folders.yaml."""
        if self.imported is None:
            self.fit("folders.yaml", "to-import", "32-true", "--trainer.max_steps=2")
            self.imported = self.folder / "runs" / "to-import" / "version_0" / "checkpoints" / "last.ckpt"
        return self.imported


def _tiny_evaluation(config: str) -> dict[str, Any]:
    splits = ["in"] if "class_conditional" in config else ["in", "out"]
    # The glyphs have more classes than so few images.
    glyphs = config.startswith(("glyphs", "baselines"))
    return {"num_images": 8, "num_real_images": None if glyphs else 16, "steps": 2, "splits": splits}


def _save_autoencoder(folder: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    ).save_pretrained(folder)  # fmt: skip


def table(found: dict[str, dict[str, dict[str, str]]]) -> str:
    """Markdown: a row for every configuration, a column for every precision; what failed is named below."""
    lines = [f"| configuration | {' | '.join(PRECISIONS)} |", "| --- " * (len(PRECISIONS) + 1) + "|"]
    notes = []
    for config, row in found.items():
        cells = []
        for precision in PRECISIONS:
            results = row[precision]
            good = [name for name, result in results.items() if result == "yes"]
            if len(good) == len(results):
                cells.append("yes")
            elif all("ConfigError" in result for result in results.values()):
                cells.append("refused")
            else:
                cells.append("no")
                notes += [f"- {config}, {precision}, {name}: {r}" for name, r in results.items() if r != "yes"]
        lines.append(f"| `configs/{config}` | {' | '.join(cells)} |")
    return "\n".join([*lines, *notes]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the runs that do not clip")
    parser.add_argument("--only", choices=[*CONFIGS, *SCALE], nargs="*", default=[*CONFIGS, *SCALE])
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--out", type=Path, help="JSON of all results; those that are in it are kept")
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    args = parser.parse_args()
    found: dict[str, dict[str, dict[str, str]]] = {}
    if args.out and args.out.is_file():
        found = json.loads(args.out.read_text())
    trained = [precision for precision in args.precisions if precision != "16-true"]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.accelerator)
        for config in args.only:
            row = found.setdefault(config, {})
            for i, precision in enumerate(args.precisions):
                possible = SHARDED if config == "scale/fsdp.yaml" else trained
                after = next(name for name in (*trained, *trained)[i + 1 :] if name in possible)
                row[precision] = {}
                for clipping in CLIPPING:
                    start = time.perf_counter()
                    compiled = ["--model.compile=true"] if args.compile and clipping == "none" else []
                    result = bench.cell(config, precision, clipping, after, *compiled)
                    row[precision][clipping] = result
                    seconds = time.perf_counter() - start
                    print(f"{config} {precision} {clipping} -> {after}: {result} ({seconds:.0f} s)", flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")
    if all(row.keys() == set(PRECISIONS) for row in found.values()):
        print(table(found))
    if args.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(before + BEGIN + table(found) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
