"""Write the checkpoints of this folder; see README.md. `write_images` makes what they were trained on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = Path(__file__).with_name("tiny.yaml")
ADDED = "trainer: {{callbacks+: [{{class_path: {}, init_args: {}}}]}}"
RUNS = {
    "ema_callback": ADDED.format("lightning_vfs.EMACallback", "{decay: 0.5}"),
    "class_conditional": "model: {config: {encoder: {architecture: class_label, num_classes: 4}}}",
    "weight_averaging": ADDED.format(
        "lightning.pytorch.callbacks.EMAWeightAveraging", "{decay: 0.5, use_buffers: false}"
    ),
}


def write_images(folder: Path) -> None:
    """Eight classes of four grey images, 8 x 8."""
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / name / f"{i}.png")


def main(names: list[str]) -> None:
    """Train each in the current folder, and copy its checkpoint here."""
    from lightning_vfs.cli import main as command

    write_images(Path("images"))
    for name in names:
        Path("added.yaml").write_text(RUNS[name])
        assert command(["fit", f"--config={CONFIG}", "--config=added.yaml"]) == 0
        shutil.move("checkpoints/last.ckpt", CONFIG.with_name(f"{name}.ckpt"))
    if "ema_callback" in names:
        source, folder = CONFIG.with_name("ema_callback.ckpt"), CONFIG.with_name("pretrained")
        assert command(["convert", f"--ckpt_path={source}", f"--out={folder}"]) == 0


if __name__ == "__main__":
    main(sys.argv[1:])
