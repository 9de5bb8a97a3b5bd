"""Figures of images whose novelty is known, on unseen glyphs: real ones, copies, blends and other classes.

python scripts/novelty_landmarks.py [--num_images 1000]
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine, gaussian_blur

from lightning_vfs.data import GlyphSets
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.metrics import ImageFeatures
from lightning_vfs.metrics.episode_figures import (
    COPY_QUANTILE,
    Estimate,
    copy_rate,
    nearest_mean_hits,
    novel_accuracy,
    share,
    support_affinity,
)
from lightning_vfs.metrics.novelty import SupportReference
from lightning_vfs.metrics.thumbnails import thumbnails

SHOTS = 5
KNOWN = {
    "real": (0.990, 0.044, -0.006, 0.947),
    "copy": (0.985, 1.000, 1.000, 0.000),
    "flip": (0.366, 1.000, 1.000, 0.000),
    "shift": (0.968, 1.000, 0.970, 0.000),
    "blur": (0.968, 0.810, -0.042, 0.182),
    "noise": (0.981, 0.987, 0.533, 0.013),
    "mean of 2": (0.987, 0.550, 0.054, 0.443),
    "mean of 5": (0.997, 0.639, 0.002, 0.361),
    "jittered mean": (float("nan"),) * 4,
    "other class": (0.000, 0.043, -0.053, 0.000),
}
"""few_shot_accuracy_all, support_affinity, copy_rate and novel_accuracy of 1,000 episodes by another implementation.

Those of the first five and of the means, which draw nothing, are to be equal; others within two standard errors.
"""


def landmarks(images: ClassImages, episodes: Episodes) -> dict[str, Tensor]:
    """Images uint8 (n, c, h, w) by name."""
    draw = torch.Generator().manual_seed(0)
    support = images.uint8(episodes.supports)
    first, mean = support[:, 0], support.float().mean(dim=1)
    padded = torch.nn.functional.pad(first.float(), (1, 1, 1, 1), value=255)
    size = first.shape[-1]
    corners = torch.randint(0, 3, (len(first), 2), generator=draw).tolist()
    jitter = (2 * torch.rand(len(first), 4, generator=draw) - 1).tolist()
    jittered = [
        affine(image, angle=12 * a, translate=[round(x), round(y)], scale=1 + 0.15 * s, shear=[0.0], fill=[255.0],
               interpolation=InterpolationMode.BILINEAR)
        for image, (a, x, y, s) in zip(mean, jitter, strict=True)
    ]  # fmt: skip
    order = np.argsort(episodes.labels, kind="stable")
    other = np.empty_like(order)
    other[order] = np.roll(order, len(order) // 2)
    made = {
        "real": images.uint8(episodes.targets),
        "copy": first,
        "flip": first.flip(-1),
        "shift": torch.stack([p[:, i : i + size, j : j + size] for p, (i, j) in zip(padded, corners, strict=True)]),
        "blur": gaussian_blur(first.float(), [5, 5], [0.7, 0.7]),
        "noise": first + 16 * torch.randn(first.shape, generator=draw),
        "mean of 2": support[:, :2].float().mean(dim=1),
        "mean of 5": mean,
        "jittered mean": torch.stack(jittered),
        "other class": images.uint8(episodes.targets[other]),
    }
    return {name: pixels.float().round().clamp(0, 255).to(torch.uint8) for name, pixels in made.items()}


def figures_of_landmarks(num_images: int) -> dict[str, tuple[Estimate, ...]]:
    """few_shot_accuracy_all, support_affinity, copy_rate and novel_accuracy by landmark."""
    images = GlyphSets(image_size=16, channels=1).split("test")
    episodes = images.episodes(num_images, SHOTS, 0)
    labels, extractor = torch.from_numpy(episodes.labels), ImageFeatures("glyph-cnn")
    layer = extractor.layers["fid"]
    real, reference = extractor(images.images)[layer], SupportReference(images, episodes)
    (threshold,) = reference.thresholds(COPY_QUANTILE, torch.ones(num_images, 1, dtype=torch.bool))
    none = torch.zeros(num_images, dtype=torch.bool)
    found = {}
    for name, pixels in landmarks(images, episodes).items():
        left_out = torch.from_numpy(episodes.supports)
        if name == "real":
            left_out = torch.cat([left_out, torch.from_numpy(episodes.targets)[:, None]], dim=1)
        right = nearest_mean_hits(extractor(pixels)[layer], labels, real, torch.from_numpy(images.labels), left_out)
        novelty = reference.novelty(thumbnails(pixels), leave_targets_out=name == "real")
        copies = (novelty.closeness <= threshold).double().masked_fill(novelty.hits.isnan(), torch.nan)
        figures = (
            share(right, labels),
            support_affinity(novelty, labels),
            copy_rate(copies, labels),
            novel_accuracy(right, novelty, none, labels),
        )
        found[name] = tuple(figure for figure in figures if figure is not None)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=1000)
    print("| landmark | few_shot_accuracy_all | support_affinity | copy_rate | novel_accuracy |")
    print("| --- | --- | --- | --- | --- |")
    for name, figures in figures_of_landmarks(parser.parse_args().num_images).items():
        cells = [
            f"{figure.value:.3f} ± {figure.error:.3f}" + ("" if math.isnan(known) else f" ({known:.3f})")
            for figure, known in zip(figures, KNOWN[name], strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
