"""Train, evaluate and sample on the built-in data set; `make quickstart` runs it.

Training goes through the Lightning CLI with configs/glyphs.yaml. Two things are fitted to the machine, and said: the
precision that is faster here, and fewer epochs where the whole run would take more than 8 minutes.

    python scripts/quickstart.py [--precision bf16-mixed]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from lightning.pytorch import seed_everything
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

from lightning_vfs import VFSDDPM
from lightning_vfs.commands.lightning import VFSCLI
from lightning_vfs.commands.quiet import quiet
from lightning_vfs.core import SamplingConfig, VFSConfig
from lightning_vfs.core.files import replacing
from lightning_vfs.data import GlyphSets
from lightning_vfs.data.pictures import sample_grid, save_png
from lightning_vfs.evaluation import EvaluationPlan, EvaluationRecord, evaluate
from lightning_vfs.evaluation.intervals import interval
from lightning_vfs.evaluation.record import FILE_NAME, Figure
from lightning_vfs.metrics import ImageFeatures
from lightning_vfs.metrics.frechet import frechet_distance
from lightning_vfs.training.step import TrainingStep

CONFIG = "configs/glyphs.yaml"
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
PICTURE = Path("quickstart.png")
TRAINING_SECONDS = 450  # of epochs; what is left of 8 minutes is for starting and ending
OVERHEAD = 1.15  # of an epoch over its bare steps: averaging, logging, validation, pictures, checkpoints
EXTRACTOR = "glyph-cnn"
UNTRAINED_RECORD = Path("runs/untrained.json")


def seconds_per_step(config: VFSConfig, sets: int, precision: torch.dtype) -> float:
    """Median time of a training step of a throwaway model on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = VFSDDPM(config).to(device).train()
    step = TrainingStep(model, model.batch_loss, precision)
    shape = (sets, config.sets.set_size, config.sets.channels, config.sets.image_size, config.sets.image_size)
    x_set = torch.zeros(shape, device=device)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        step(x_set).item()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def fit_to_machine(settings: dict, precision: str | None) -> list[str]:
    """Flags for the precision, by default the one that is faster here, and for fewer epochs if they took too long."""
    data = settings["data"]["init_args"]
    config = VFSConfig.for_data(settings["model"]["config"], data)
    took = {name: seconds_per_step(config, data["batch_size"], dtype) for name, dtype in PRECISIONS.items()}
    precision = precision or min(took, key=lambda name: took[name])
    epoch = OVERHEAD * took[precision] * (data["sets_per_epoch"] // data["batch_size"])
    wanted = settings["trainer"]["max_epochs"]
    epochs = max(1, min(wanted, int(TRAINING_SECONDS / epoch)))
    print(f"A step takes {took['32-true']:.3f} s in float32, {took['bf16-mixed']:.3f} s in bf16: taking {precision}.")
    shorter = "" if epochs == wanted else f" (the configuration's {wanted} would take more than 8 minutes here)"
    print(f"Training for {epochs} epochs{shorter}, about {epochs * epoch / 60:.0f} minutes.")
    return [f"--trainer.precision={precision}", f"--trainer.max_epochs={epochs}", "--trainer.max_time=00:00:08:00"]


def fid_of_untrained(data: GlyphSets, config: VFSConfig) -> float:
    """FID on unseen classes of a model that was never trained."""
    plan = EvaluationPlan(
        splits=["out"], feature_extractor=EXTRACTOR, sampling=SamplingConfig(steps=10), few_shot_way=None,
        diversity_images=0,
    )  # fmt: skip
    record = evaluate(VFSDDPM(config), data, plan, device="cuda" if torch.cuda.is_available() else "cpu")
    record.write(UNTRAINED_RECORD)
    return record.figures[f"fid[{EXTRACTOR}]/out"].value


def fid_of_real_halves(data: GlyphSets) -> float:
    """FID between two halves of the real images of unseen classes."""
    images = data.split("test")
    order = np.random.default_rng(0).permutation(len(images))
    halves = np.array_split(order, 2)
    features = ImageFeatures(EXTRACTOR)
    return frechet_distance(*(features(images.uint8(half))[features.layers["fid"]] for half in halves))


def explain(record: EvaluationRecord, untrained: float, floor: float) -> list[str]:
    """A line for each figure, the headline first: what it means, its chance level, its best possible value."""
    figures = {name: figure.value for name, figure in record.figures.items()}
    accuracy, real = (figures[f"few_shot_accuracy[{EXTRACTOR}]/{name}"] for name in ("out", "out_real"))
    return [
        *(f"{verdict}.".capitalize() for verdict in record.verdicts),
        headline(record.figures[f"novel_accuracy[{EXTRACTOR}]/out"]),
        f"few_shot_accuracy {accuracy:.1%}: generated images of characters never seen in training that a classifier "
        f"takes for their character among 20. Chance 5%, real images {real:.1%}.",
        f"FID, unseen characters {figures[f'fid[{EXTRACTOR}]/out']:.2f}; trained characters "
        f"{figures[f'fid[{EXTRACTOR}]/in']:.2f}: distance to real images in {EXTRACTOR} features. "
        f"Untrained weights {untrained:.1f}, two halves of the real images {floor:.2f}.",
    ]


def headline(figure: Figure) -> str:
    """novel_accuracy with its interval, and that of real images and of a copier."""
    assert figure.floor is not None and figure.copier is not None
    between = ""
    if figure.replicates is not None and figure.standard_error is not None:
        low, high = interval(figure.value, figure.standard_error, len(figure.replicates) - 1)
        between = f" (95% interval {low:.1%} to {high:.1%})"
    return (
        f"novel_accuracy {figure.value:.1%}{between}: generated images of characters never seen in training that show "
        f"their character and copy neither their support nor a training image. Real images {figure.floor:.1%}, a model "
        f"that returns its first support image {figure.copier:.1%}."
    )


def guidance_of(settings: dict) -> float:
    """Guidance that the configuration evaluates with."""
    (evaluation,) = (c for c in settings["trainer"]["callbacks"] if c["class_path"].endswith("FIDCallback"))
    return evaluation["init_args"]["guidance_scale"]


def draw(model: VFSDDPM, data: GlyphSets, guidance_scale: float, lines: list[str]) -> None:
    """12 unseen characters, the support on the left and generated images on the right, the lines below."""
    images = data.split("test")
    episodes = images.episodes(len(images), model.config.sets.shots, seed=0)
    support = images.float(episodes.supports[episodes.first_of_classes(12)])
    generated = model.sample(support, num_images=12, steps=50, seed=0, guidance_scale=guidance_scale)
    grid = to_pil_image(sample_grid(support, generated))
    font = ImageFont.load_default(size=14)
    title = "Left of the line: the support, 5 images of a character never seen in training. Right: generated."
    wrapped = [piece for line in [title, *lines] for piece in wrap(line, font, grid.width - 20)]
    page = Image.new("RGB", (grid.width, grid.height + 20 * len(wrapped) + 20), "white")
    page.paste(grid, (0, 0))
    for row, line in enumerate(wrapped):
        ImageDraw.Draw(page).text((10, grid.height + 10 + 20 * row), line, fill="black", font=font)
    with replacing(PICTURE) as unfinished:
        page.save(unfinished, format="PNG")


def write_support(data: GlyphSets, folder: Path) -> None:
    """The support of the picture's first row as a folder of images, for the command `sample`."""
    images = data.split("test")
    episodes = images.episodes(len(images), data.set_size - 1, seed=0)
    for i, image in enumerate(images.uint8(episodes.supports[0])):
        save_png(image, folder / f"{i}.png")


def wrap(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Pieces of a line that fit the width in pixels."""
    pieces = [""]
    for word in line.split():
        longer = f"{pieces[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            pieces[-1] = longer
        else:
            pieces.append(word)
    return pieces


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, help="by default the one that is faster here")
    options = parser.parse_args(args)
    started = time.perf_counter()
    seed_everything(0)
    settings = yaml.safe_load(Path(CONFIG).read_text())
    data = GlyphSets(**settings["data"]["init_args"])
    print(f"Data: {data.describe()}")
    flags = fit_to_machine(settings, options.precision)
    training = VFSCLI(["fit", f"--config={CONFIG}", "--trainer.devices=1", *flags])
    trained = time.perf_counter()
    run = Path(training.trainer.log_dir)
    checkpoint = run / "checkpoints" / "last.ckpt"
    evaluation = VFSCLI(["test", f"--config={run / 'config.yaml'}", f"--ckpt_path={checkpoint}"])
    record = EvaluationRecord.read(checkpoint.with_name(FILE_NAME))
    model = VFSDDPM.load_from_checkpoint(checkpoint)
    lines = explain(record, fid_of_untrained(data, model.config), fid_of_real_halves(data))
    draw(model, data, guidance_of(settings), lines)
    write_support(data, run / "support")
    print()
    print("\n".join(lines))
    print(f"\nTraining took {(trained - started) / 60:.1f} minutes, all {(time.perf_counter() - started) / 60:.1f}.")
    print(f"Picture:     {PICTURE}")
    print(f"Checkpoint:  {checkpoint}")
    print(f"Log:         {run / 'metrics.csv'}")
    print(f"Figures:     {Path(evaluation.trainer.log_dir) / 'metrics.csv'}")
    print("\nTry next:")
    how = f"--guidance_scale {guidance_of(settings)} --out out/"
    print(f"  .venv/bin/lightning-vfs sample --ckpt_path {checkpoint} --support {run / 'support'} {how}")
    print(f"  .venv/bin/lightning-vfs fit --config {CONFIG} --ckpt_path {checkpoint} --trainer.max_epochs 50")
    print("  .venv/bin/lightning-vfs fit --config configs/folders.yaml --data.root YOUR_FOLDER_OF_CLASS_FOLDERS")


if __name__ == "__main__":
    with quiet(training=False):
        main()
