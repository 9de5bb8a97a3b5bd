"""Make glyph-cnn, the feature extractor for the built-in glyphs: `lightning-vfs extractor fit --data GlyphSets`.

    python scripts/train_glyph_cnn.py lightning_vfs/metrics/glyph_cnn.safetensors

What comes with the package was made by an earlier version of this script, which drew the same numbers. Validation and
test classes are only looked at in the end, for the figure that is printed. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lightning_vfs.data.glyphs import GlyphSets
from lightning_vfs.data.images import ClassImages
from lightning_vfs.metrics.classifier import Classifier
from lightning_vfs.metrics.extractor_training import BATCH_SIZE, fit_extractor
from lightning_vfs.metrics.few_shot import FewShotAccuracy


@torch.no_grad()
def few_shot_accuracy(model: Classifier, split: ClassImages, way: int = 20) -> float:
    """Accuracy of real images among classes that the model was not trained on."""
    images, labels = split.float(np.arange(len(split))), torch.from_numpy(split.labels)
    features = torch.cat([model(part)[0] for part in images.split(BATCH_SIZE)])
    metric = FewShotAccuracy(features, labels, way)
    metric.update(features, labels, torch.arange(len(split)), leave_one_out=True)
    return metric.compute().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="safetensors file to write")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    data = GlyphSets()
    model, card = fit_extractor(data, show_progress=True)
    record = {
        "trained_on": f"train split of GlyphSets(image_size={data.image_size}), split_seed {data.split_seed}, "
        f"{len(card['classes'])} classes, {card['images']} images",
        "classes_sha256": hashlib.sha256(json.dumps(card["classes"]).encode()).hexdigest(),
        "seed": str(card["seed"]),
        "accuracy_held_out_faces": f"{card['accuracy']:.4f}",
        "few_shot_accuracy_20_way_test_classes": f"{few_shot_accuracy(model, data.split('test')):.4f}",
    }
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out, record)
    print(json.dumps(record, indent=2))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
