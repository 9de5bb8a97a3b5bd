"""Train the model that comes with the package, `glyphs`, and write its folder.

    python scripts/train_boxed_model.py [--minutes 60]

The recipe is configs/glyphs.yaml with its seed, for more epochs. They are fewer where they would take more than
`--minutes` on this machine; `--epochs` and `--precision` repeat a run exactly on a processor of the same kind. The
weights are the average, rounded to float16, and are evaluated as they are written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from lightning.pytorch import seed_everything

from lightning_vfs import VFSDDPM
from lightning_vfs.commands.lightning import VFSCLI
from lightning_vfs.commands.quiet import quiet
from lightning_vfs.core import SamplingConfig, VFSConfig
from lightning_vfs.core.files import replacing
from lightning_vfs.data import GlyphSets
from lightning_vfs.data.pictures import sample_grid, save_png
from lightning_vfs.evaluation import EvaluationPlan, evaluate
from lightning_vfs.modules.sharing import write_shared
from lightning_vfs.training.model_card import CardText
from lightning_vfs.training.pretrained import BOXED

sys.path.insert(0, str(Path(__file__).parent))
from quickstart import CONFIG, OVERHEAD, PRECISIONS, guidance_of, seconds_per_step

NAME = "glyphs"
EPOCHS = 100
LARGEST = 10_000_000
"""Bytes of the weights."""
NUM_IMAGES = 2000
EXAMPLES = 6
TEXT = CardText(
    description="It is the model that comes with lightning_vfs: small, to try the package without training.",
    data="It was trained on `GlyphSets`, the built-in data set: characters of the fonts that matplotlib ships (DejaVu, "
    "whose licence is that of Bitstream Vera, and STIX, under the SIL Open Font License), rendered at 16 x 16 pixels. "
    "The figures of `out` are on characters that it has never seen.",
    license="apache-2.0",
)


def plan_of(settings: dict) -> EvaluationPlan:
    """The evaluation that the record is of."""
    return EvaluationPlan(
        num_images=NUM_IMAGES,
        feature_extractor="glyph-cnn",
        sampling=SamplingConfig(guidance_scale=guidance_of(settings)),
        metrics=("fid", "prc"),
    )


def length_of(settings: dict, minutes: float, precision: str | None) -> tuple[int, str]:
    """Epochs that these minutes allow on this machine, and the precision that is the faster one here."""
    data = settings["data"]["init_args"]
    config = VFSConfig.for_data(settings["model"]["config"], data)
    took = {name: seconds_per_step(config, data["batch_size"], dtype) for name, dtype in PRECISIONS.items()}
    precision = precision or min(took, key=lambda name: took[name])
    epoch = OVERHEAD * took[precision] * (data["sets_per_epoch"] // data["batch_size"])
    return max(1, min(EPOCHS, int(60 * minutes / epoch))), precision


def train(epochs: int, precision: str, runs: Path) -> Path:
    """Train by the configuration; returns the last checkpoint."""
    flags = [f"--trainer.max_epochs={epochs}", f"--trainer.precision={precision}", "--trainer.devices=1"]
    run = VFSCLI(["fit", f"--config={CONFIG}", f"--trainer.logger.init_args.save_dir={runs}", *flags])
    return Path(run.trainer.log_dir) / "checkpoints" / "last.ckpt"


def write(checkpoint: Path, settings: dict, target: Path, how: str) -> None:
    """Round, evaluate and write the model of a checkpoint, with its card, record, picture and examples."""
    averaged = VFSDDPM.load_from_checkpoint(checkpoint)
    data = GlyphSets(**settings["data"]["init_args"])
    with replacing(target) as folder:
        write_shared(averaged, folder, NAME, dtype=torch.float16)
        size = (folder / "model.safetensors").stat().st_size
        if size > LARGEST:
            raise SystemExit(f"The weights have {size:,} bytes, more than {LARGEST:,}.")
        model = VFSDDPM.from_pretrained(folder)
        model.origin = averaged.origin
        record = evaluate(model, data, plan_of(settings), show_progress=True)
        images = data.split("test")
        episodes = images.episodes(len(images), model.config.sets.shots, seed=0)
        first = episodes.supports[episodes.first_of_classes(EXAMPLES)]
        support = images.float(first)
        generated = model.sample(support, 8, seed=0, guidance_scale=guidance_of(settings))
        trained = f"It was trained by `scripts/train_boxed_model.py {how}`."
        text = CardText(description=f"{TEXT.description} {trained}", data=TEXT.data, license=TEXT.license)
        picture = sample_grid(support, generated)
        write_shared(model, folder, NAME, text=text, record=record, picture=picture, dtype=torch.float16)
        for number, rows in enumerate(first):
            for i, image in enumerate(images.uint8(rows)):
                save_png(image, folder / "examples" / str(number) / f"{i}.png")
    print("\n".join([*record.verdicts, *record.in_words()]))


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of training, at most")
    parser.add_argument("--epochs", type=int, help="exactly so many, whatever they take")
    parser.add_argument("--precision", choices=PRECISIONS, help="by default the one that is faster here")
    parser.add_argument(
        "--checkpoint", type=Path, help="do not train; write the model of this checkpoint of the same recipe"
    )
    parser.add_argument("--out", type=Path, default=BOXED / NAME, help="folder to write")
    options = parser.parse_args(args)
    if options.out.exists():
        raise SystemExit(f"{options.out} is there already: remove it, or give another folder with --out.")
    started = time.perf_counter()
    settings = yaml.safe_load(Path(CONFIG).read_text())
    seed_everything(settings["seed_everything"])
    checkpoint = options.checkpoint
    if checkpoint is None:
        epochs, precision = length_of(settings, options.minutes, options.precision)
        epochs = options.epochs or epochs
        print(f"Training for {epochs} epochs in {precision}: --epochs {epochs} --precision {precision} repeats it.")
        with tempfile.TemporaryDirectory() as runs:
            checkpoint = train(epochs, precision, Path(runs))
            write(checkpoint, settings, options.out, f"--epochs {epochs} --precision {precision}")
    elif options.epochs and options.precision:
        write(checkpoint, settings, options.out, f"--epochs {options.epochs} --precision {options.precision}")
    else:
        raise SystemExit("Say by --epochs and --precision how the checkpoint was trained: the card names it.")
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size:,} bytes, after {(time.perf_counter() - started) / 60:.0f} minutes.")


if __name__ == "__main__":
    with quiet(training=False):
        main()
