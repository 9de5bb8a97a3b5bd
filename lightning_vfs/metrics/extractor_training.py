"""Training of a small classifier on the training classes of a data set, as a feature extractor for it."""

from __future__ import annotations

import math
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, grid_sample

from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.progress import progress
from lightning_vfs.data.images import ClassImages
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.metrics.classifier import LARGEST, SMALLEST, Classifier
from lightning_vfs.version import __version__

BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 256, 4e-3, 0.05, 0.1
STEPS = 1200
"""Steps that are about enough, for which epochs are chosen by default."""


def fit_extractor(
    data: SetDataModule,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> tuple[Classifier, dict[str, Any]]:
    """Train a classifier of the training classes, on the CPU; the same seed gives the same weights on the same machine.

    One or two images of every class are held out to measure how well it classifies.

    Args:
        data: its train split is trained on.
        image_size: height and width that the network sees images in, from 16 to 64; by default the data's, or what is
            nearest to it.
        channels: 1 (grey) or 3 (RGB); by default the data's.
        epochs: by default as many as make about 1,200 steps of 256 images.
        seed: of weights, order, augmentation and held-out images.
        show_progress: show a progress bar.

    Returns:
        The network in evaluation mode, and what there is to say of it, as plain values.

    Raises:
        ConfigError: an option is out of range.
        DataError: the data has fewer than two classes, or no class with three images.
    """
    size = min(max(data.image_size, SMALLEST), LARGEST) if image_size is None else image_size
    channels = data.channels if channels is None else channels
    _check_options(size, channels, epochs, seed)
    split, start = data.split("train"), time.monotonic()
    held = held_out(split, seed)
    if split.num_classes < 2 or not held.any():
        raise DataError(
            f"The train split has {split.num_classes} classes of {len(split)} images: a classifier needs at least 2 "
            "classes, and at least one with 3 images, of which one is held out."
        )
    rows = np.flatnonzero(~held)
    epochs = max(1, round(STEPS / math.ceil(len(rows) / BATCH_SIZE))) if epochs is None else epochs
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Classifier(split.num_classes, channels, size)
            _train(model, split, rows, epochs, seed, show_progress)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    return model, {
        "data": {"split": "train", **data.identity()},
        "images": len(rows),
        "held_out": int(held.sum()),
        "accuracy": _accuracy(model, split, np.flatnonzero(held)),
        "chance": 1 / split.num_classes,
        "classes": list(split.class_names),
        "epochs": epochs,
        "seed": seed,
        "augmentation": "shifts by 7.5%, scales by 15%, turns by 7 degrees, blur, noise",
        "seconds": round(time.monotonic() - start, 1),
        "threads": torch.get_num_threads(),
        "versions": {"lightning_vfs": __version__, **{name: version(name) for name in ("torch", "torch-fidelity")}},
    }


def _check_options(size: int, channels: int, epochs: int | None, seed: int) -> None:
    check_whole_number("image_size", size, SMALLEST)
    check_whole_number("epochs", epochs, 1, or_none=True)
    check_whole_number("seed", seed, 0)
    if size > LARGEST:
        raise ConfigError(f"image_size is {size}; it must be a whole number from {SMALLEST} to {LARGEST}.")
    if channels not in (1, 3):
        raise ConfigError(f"channels is {channels!r}; allowed: 1 (grey) or 3 (RGB).")


def held_out(split: ClassImages, seed: int) -> np.ndarray:
    """Images that are not trained on, drawn by seed: two of a class of 8 or more, one of 3 or more; bool (N,)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(split), dtype=bool)
    for offset, count in zip(split.offsets, split.counts, strict=True):
        if count >= 3:
            mask[offset + rng.choice(count, 2 if count >= 8 else 1, replace=False)] = True
    return mask


def _train(model: Classifier, split: ClassImages, rows: np.ndarray, epochs: int, seed: int, show: bool) -> None:
    """Train on images of these rows (m,); leaves the network in evaluation mode."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(split.labels[rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(rows) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    bar = progress("Training the extractor", steps, "steps", unit="step", disable=not show)
    try:
        for _ in range(epochs):
            for batch in torch.randperm(len(rows), generator=rng).split(BATCH_SIZE):
                images = augmented(model.adapt(split.float(rows[batch.numpy()])), rng)
                loss = cross_entropy(model(images)[1], labels[batch], label_smoothing=LABEL_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(1)
    finally:
        bar.close()
    model.eval()


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shifted, scaled, turned a little, some of them blurred, with some noise: (n, c, h, w) in [-1, 1]."""
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


@torch.no_grad()
def _accuracy(model: Classifier, split: ClassImages, rows: np.ndarray) -> float:
    """Share of images that are classified as what they are."""
    right = 0
    for batch in np.array_split(rows, max(1, math.ceil(len(rows) / BATCH_SIZE))):
        _, logits = model(model.adapt(split.float(batch)))
        right += int((logits.argmax(dim=1).numpy() == split.labels[batch]).sum())
    return right / len(rows)
