"""Train glyph-cnn, the feature extractor for the built-in glyphs, on the training classes of `GlyphSets()`.

    python scripts/train_glyph_cnn.py lightning_vfs/metrics/glyph_cnn.safetensors

Two images of each class, each by another face, are held out to see how well it classifies. Validation and test classes
are only looked at in the end, for the figure that is printed. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, grid_sample

from lightning_vfs.data.glyphs import GlyphSets
from lightning_vfs.data.images import ClassImages
from lightning_vfs.metrics.few_shot import FewShotAccuracy
from lightning_vfs.metrics.glyph_cnn import IMAGE_SIZE, GlyphClassifier

SEED = 0
HELD_OUT = 2
EPOCHS = 16
BATCH_SIZE = 256
LEARNING_RATE = 4e-3


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shifted, scaled, turned a little, some of them blurred, with some noise: (n, 1, h, w) in [-1, 1]."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=rng)

    angle, scale = uniform(-0.12, 0.12), uniform(0.85, 1.15)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([cosine, -sine, uniform(-0.15, 0.15), sine, cosine, uniform(-0.15, 0.15)], dim=1)
    grid = affine_grid(matrix.reshape(n, 2, 3), list(images.shape), align_corners=False)
    images = grid_sample(images, grid, padding_mode="border", align_corners=False)
    blurred = avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    blur = (uniform(-1, 1).clamp(min=0) * 0.7).reshape(-1, 1, 1, 1)
    images = images + blur * (blurred - images)
    noise = torch.randn(images.shape, generator=rng) * uniform(0, 0.15).reshape(-1, 1, 1, 1)
    return (images + noise).clamp(-1, 1)


def train(images: Tensor, labels: Tensor, num_classes: int) -> GlyphClassifier:
    """Classifier of images (n, 1, 16, 16) in [-1, 1] with labels (n,)."""
    torch.manual_seed(SEED)
    rng = torch.Generator().manual_seed(SEED)
    model = GlyphClassifier(num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    batches = math.ceil(len(images) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * batches)
    start = time.monotonic()
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(images), generator=rng).split(BATCH_SIZE):
            _, logits = model(augmented(images[rows], rng))
            loss = cross_entropy(logits, labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(
            f"epoch {epoch + 1}/{EPOCHS}: loss {total / len(images):.3f}, {time.monotonic() - start:.0f} s", flush=True
        )
    return model.eval()


@torch.no_grad()
def accuracy(model: GlyphClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of images that are classified as what they are."""
    logits = torch.cat([model(part)[1] for part in images.split(BATCH_SIZE)])
    return (logits.argmax(dim=1) == labels).double().mean().item()


@torch.no_grad()
def few_shot_accuracy(model: GlyphClassifier, split: ClassImages, way: int = 20) -> float:
    """Accuracy of real images among classes that the model was not trained on."""
    images, labels = split.float(np.arange(len(split))), torch.from_numpy(split.labels)
    features = torch.cat([model(part)[0] for part in images.split(BATCH_SIZE)])
    metric = FewShotAccuracy(features, labels, way)
    metric.update(features, labels, torch.arange(len(split)), leave_one_out=True)
    return metric.compute().item()


def held_out(split: ClassImages) -> np.ndarray:
    """HELD_OUT images of each class, drawn by seed: bool (len(split),)."""
    rng = np.random.default_rng(SEED)
    mask = np.zeros(len(split), dtype=bool)
    for offset, count in zip(split.offsets, split.counts, strict=True):
        mask[offset + rng.choice(count, HELD_OUT, replace=False)] = True
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="safetensors file to write")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    data = GlyphSets(image_size=IMAGE_SIZE)
    split = data.split("train")
    images, labels = split.float(np.arange(len(split))), torch.from_numpy(split.labels)
    held = torch.from_numpy(held_out(split))
    model = train(images[~held], labels[~held], split.num_classes)

    record = {
        "trained_on": f"train split of GlyphSets(image_size={IMAGE_SIZE}), split_seed {data.split_seed}, "
        f"{split.num_classes} classes, {int((~held).sum())} images",
        "classes_sha256": hashlib.sha256(json.dumps(split.class_names).encode()).hexdigest(),
        "seed": str(SEED),
        "accuracy_held_out_faces": f"{accuracy(model, images[held], labels[held]):.4f}",
        "few_shot_accuracy_20_way_test_classes": f"{few_shot_accuracy(model, data.split('test')):.4f}",
    }
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out, record)
    print(json.dumps(record, indent=2))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
