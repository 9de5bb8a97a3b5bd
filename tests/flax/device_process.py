"""Samples of a folder's model on one device and on all, in a process that never loads torch; prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

from lightning_vfs.flax import FlaxVFSDDPM, generation

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def main(folder: Path) -> None:
    model = FlaxVFSDDPM.from_pretrained(folder)
    support, devices = np.load(folder / "support.npy"), jax.devices()
    generate, report = generation.generate, {"devices": len(devices), "parts": [], "collectives": []}
    images = {"one": model.sample(support, 6, steps=4, guidance_scale=1.5)}
    compiled = []

    def watched(module, *args, **options):
        if not compiled:
            compiled.append(generate.lower(module, *args, **options).compile())
            text = compiled[0].as_text()
            report["collectives"] = [name for name in COLLECTIVES if name in text]
        out = compiled[0](*args)
        report["parts"].append([(str(shard.index[0]), *shard.data.shape) for shard in out.addressable_shards])
        return out

    generation.generate = watched
    images["four"] = model.sample(support, 6, steps=4, guidance_scale=1.5, batch_size=5, devices=devices)
    np.savez(folder / "images.npz", **images)
    print(json.dumps(report | {"torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
