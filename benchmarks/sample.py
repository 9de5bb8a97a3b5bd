"""Sampling speed: images a second for DDIM-50 on the glyph model, and how often the encoder runs.

The product encodes a support once and repeats the context. In the same process, the same sampler runs with the
support encoded again at every step for every image.

    python benchmarks/sample.py [--device cuda] [--num_images 256] [--out benchmarks/results/sample_cpu.json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from report import report

from lightning_vfs import VFSDDPM, VFSConfig

CONFIG = Path(__file__).parents[1] / "configs" / "glyphs.yaml"
STEPS = 50


def glyph_model() -> VFSDDPM:
    """The model of configs/glyphs.yaml; its speed does not depend on training."""
    settings = yaml.safe_load(CONFIG.read_text())
    data, config = settings["data"]["init_args"], settings["model"]["config"]
    return VFSDDPM(VFSConfig.for_data(config, data)).eval()


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Median seconds of three calls, after one to warm up."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    model = glyph_model().to(device)
    sets = model.config.sets
    support = torch.zeros(sets.shots, sets.channels, sets.image_size, sets.image_size, device=device)
    encoded = []
    handle = model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    model.sample(support, args.num_images, steps=STEPS)
    calls = len(encoded)
    handle.remove()
    seconds = timed(lambda: model.sample(support, args.num_images, steps=STEPS), device)
    supports = support.expand(args.num_images, -1, -1, -1, -1)
    anew = timed(lambda: [model.encode(supports) for _ in range(STEPS)], device)
    result = {
        "case": "configs/glyphs.yaml, DDIM-50, one support",
        "num_images": args.num_images,
        "images_per_second": round(args.num_images / seconds, 1),
        "encoder_calls_per_support": calls,
        "speed_up_of_encoding_once": round((seconds + anew) / seconds, 2),
    }
    report(result, device, args.out)


if __name__ == "__main__":
    main()
