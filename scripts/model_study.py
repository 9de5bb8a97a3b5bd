"""The study behind docs/models.md: variants of the glyph model, each trained for the same CPU time, then evaluated.

    python scripts/model_study.py run --variants film-stack lag-stack   # all of them by default
    python scripts/model_study.py report                                # tables, and docs/models.png

Time is that of the process on its CPU cores, so that what else the machine does changes nothing: 420 s are 3.5 minutes
on 2 cores. A variant's number of steps follows from the time that its own steps take. All are configs/glyphs.yaml with
`film` conditioning, without guidance, and with batches of 8 sets; they differ from that in what VARIANTS says and in
nothing else. A variant that has its results is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

from lightning_vfs import VFSDDPM, EMACallback, VFSConfig
from lightning_vfs.core import SamplingConfig
from lightning_vfs.data import GlyphSets
from lightning_vfs.data.pictures import sample_grid
from lightning_vfs.evaluation import EvaluationPlan, evaluate
from lightning_vfs.modules import OptimizerConfig
from lightning_vfs.training.step import TrainingStep

SETTINGS = yaml.safe_load(Path("configs/glyphs.yaml").read_text())
FOLDER = Path("runs/study")
EXTRACTOR = "glyph-cnn"
SETS, IMAGES = 8, 500
STANDARD = {"sampler": "ddim", "steps": 50}
SHOTS = [{**STANDARD, "shots": shots} for shots in (1, 2, 3, 4)]


class Variant(NamedTuple):
    """What a variant changes of the model's configuration, and how it is sampled besides DDIM-50."""

    parts: dict[str, dict[str, Any]]
    sampling: tuple[dict[str, Any], ...] = ()


# What all variants begin with, and configs/glyphs.yaml with what came out best.
FILM: dict[str, dict[str, Any]] = {
    "encoder": {"pool": "cls", "context_dropout": 0.0},
    "denoiser": {"conditioning": "film"},
}
LAG = {"encoder": {"pool": "patches"}, "denoiser": {"conditioning": "lag"}}
VARIANTS = {
    "film-stack": Variant(
        {},
        (
            {"sampler": "ddpm", "steps": 250},
            {"sampler": "ddim", "steps": 20},
            {"sampler": "dpmpp_2m", "steps": 20},
            {"sampler": "dpmpp_2m", "steps": 50},
            *SHOTS,
        ),
    ),
    "film-guidance": Variant(
        {"encoder": {"context_dropout": 0.1}},
        (
            *({**STANDARD, "guidance_scale": scale} for scale in (1.5, 2.0, 3.0, 4.0)),
            {**STANDARD, "guidance_scale": 3.0, "guidance_interval": (200, 800)},
        ),
    ),
    "film-per_image_mean": Variant({"encoder": {"tokenizer": "per_image_mean"}}),
    "lag-stack": Variant(LAG),
    "lag-per_image_mean": Variant({**LAG, "encoder": {**LAG["encoder"], "tokenizer": "per_image_mean"}}),
    "film-variational": Variant({"encoder": {"context": "variational", "kl_weight": 0.01}}),
    "film-variational_discrete": Variant({"encoder": {"context": "variational_discrete", "kl_weight": 0.01}}),
    "film-random_shots": Variant({"sets": {"random_shots": True}}, tuple(SHOTS)),
    "unconditional": Variant({"encoder": {"architecture": "none"}}),
    "class_conditional": Variant({"encoder": {"architecture": "class_label"}}),
}


def glyphs() -> GlyphSets:
    """The data of configs/glyphs.yaml."""
    return GlyphSets(**SETTINGS["data"]["init_args"] | {"batch_size": SETS})


def config_of(variant: Variant, data: GlyphSets) -> VFSConfig:
    """The configuration of a variant."""
    values = copy.deepcopy(SETTINGS["model"]["config"])
    for parts in (FILM, variant.parts):
        for part, options in parts.items():
            values.setdefault(part, {}).update(options)
    if values["encoder"].get("architecture") == "class_label":
        values["encoder"]["num_classes"] = data.split("train").num_classes
    return VFSConfig.for_data(values, vars(data))


def cpu_seconds_per_step(config: VFSConfig, sets: int) -> float:
    """Shortest CPU time of some training steps of a throwaway model."""
    model = VFSDDPM(config).train()
    step = TrainingStep(model, model.batch_loss)
    size = config.sets.image_size
    batch = {
        "images": torch.zeros(sets, config.sets.set_size, config.sets.channels, size, size),
        "index": torch.arange(sets),
        "label": torch.zeros(sets, dtype=torch.int64),
    }
    times = []
    for _ in range(6):
        start = time.process_time()
        step(batch)
        times.append(time.process_time() - start)
    return min(times)


def run(name: str, cpu_seconds: float) -> None:
    """Train and evaluate a variant; writes its results, a checkpoint and a picture into its folder."""
    folder = FOLDER / name
    if (folder / "results.json").exists():
        return
    pl.seed_everything(0)
    data, variant = glyphs(), VARIANTS[name]
    config = config_of(variant, data)
    step = cpu_seconds_per_step(config, data.batch_size)
    steps = int(cpu_seconds / step)
    model = VFSDDPM(config, OptimizerConfig(**SETTINGS["model"]["optimizer"]))
    start = time.process_time()
    # An average over the same share of every run: what a run begins with weighs e**-7, a thousandth, at its end.
    averaging = EMACallback(decay=1 - 7 / steps, warmup=False)
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[averaging], max_steps=steps, gradient_clip_val=1.0, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    took = time.process_time() - start
    trainer.save_checkpoint(folder / "last.ckpt")
    model = VFSDDPM.load_from_checkpoint(folder / "last.ckpt")
    results: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "cpu_seconds_per_step": step,
        "cpu_seconds": took,
        "evaluations": [figures_of(model, data, how) for how in (STANDARD, *variant.sampling)],
    }
    draw(model, data).save(folder / "grid.png")
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def figures_of(model: VFSDDPM, data: GlyphSets, how: dict[str, Any]) -> dict[str, Any]:
    """Figures of 500 images a split; of both splits where images are drawn in the standard way."""
    splits = ["in"] if model.config.encoder.condition == "label" else ["out"]
    if how is STANDARD:
        splits = ["in", *(split for split in splits if split == "out")]
    start = time.process_time()
    shots, sampling = how.get("shots"), {name: value for name, value in how.items() if name != "shots"}
    plan = EvaluationPlan(
        splits=splits, feature_extractor=EXTRACTOR, num_images=IMAGES, shots=shots, sampling=SamplingConfig(**sampling)
    )
    record = evaluate(model, data, plan)
    figures = {name.replace(f"[{EXTRACTOR}]", ""): figure.value for name, figure in record.figures.items()}
    return {"how": how, "cpu_seconds": time.process_time() - start, "figures": figures}


def draw(model: VFSDDPM, data: GlyphSets, rows: int = 6) -> Image.Image:
    """Characters never seen in training (of a class-conditional model, ones that were): real left, generated right."""
    by_label = model.config.encoder.condition == "label"
    images = data.split("train" if by_label else "test")
    episodes = images.episodes(len(images), data.set_size - 1, seed=0)
    chosen = episodes.first_of_classes(rows)
    support = images.float(episodes.supports[chosen])
    if by_label:
        generated = model.sample(label=torch.from_numpy(episodes.labels[chosen]), num_images=8)
    elif model.config.encoder.condition == "support":
        generated = model.sample(support, num_images=8)
    else:
        generated = model.sample(num_images=8 * rows).unflatten(0, (rows, 8))
    return to_pil_image(sample_grid(support, generated, min_size=32))


# -- report ----------------------------------------------------------------------------------------------------------


def report() -> None:
    """Print the tables of docs/models.md, and write its picture."""
    found = {name: FOLDER / name / "results.json" for name in VARIANTS}
    results = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    print("| model | parameters | steps | CPU s | fid/in | fid/out | few_shot_accuracy/in | few_shot_accuracy/out |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, result in results.items():
        figures = result["evaluations"][0]["figures"]
        training = f"{result['parameters'] / 1e6:.2f} M | {result['steps']:,} | {result['cpu_seconds']:.0f}"
        print(f"| {name} | {training} | {_cells(figures)} |")
    for name, result in results.items():
        if len(result["evaluations"]) > 1:
            print(f"\n{name}:\n\n| sampling | fid/out | few_shot_accuracy/out | CPU s |\n| --- | --- | --- | --- |")
            for evaluation in result["evaluations"]:
                figures = evaluation["figures"]
                how = ", ".join(f"{key} {value}" for key, value in evaluation["how"].items())
                print(
                    f"| {how} | {figures['fid/out']:.1f} | {figures['few_shot_accuracy/out']:.1%} "
                    f"| {evaluation['cpu_seconds']:.0f} |"
                )
    picture({name: Image.open(FOLDER / name / "grid.png") for name in results}).save("docs/models.png")


def _cells(figures: dict[str, float]) -> str:
    fids = [f"{figures[name]:.1f}" if name in figures else "-" for name in ("fid/in", "fid/out")]
    accuracies = [
        f"{figures[name]:.1%}" if name in figures else "-" for name in ("few_shot_accuracy/in", "few_shot_accuracy/out")
    ]
    return " | ".join(fids + accuracies)


def picture(grids: dict[str, Image.Image], columns: int = 3) -> Image.Image:
    """The grids side by side, each below its name."""
    width, height = (max(size) for size in zip(*(grid.size for grid in grids.values()), strict=True))
    font = ImageFont.load_default(size=18)
    rows = -(-len(grids) // columns)
    page = Image.new("RGB", (columns * (width + 12), rows * (height + 38)), "white")
    for i, (name, grid) in enumerate(grids.items()):
        x, y = (i % columns) * (width + 12) + 6, (i // columns) * (height + 38)
        ImageDraw.Draw(page).text((x, y + 6), name, fill="black", font=font)
        page.paste(grid, (x, y + 32))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["run", "report"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cpu_seconds", type=float, default=420)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.do == "report":
        report()
    for name in options.variants if options.do == "run" else ():
        run(name, options.cpu_seconds)


if __name__ == "__main__":
    main()
