"""What a model gets that learns nothing: images made of the support alone, whose figures stand beside its own."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from lightning_vfs.core.random_bits import random_bits
from lightning_vfs.data.images import ClassImages, Episodes

ROTATION = 12.0
"""Degrees, at most, that a jittered image is rotated by."""
SCALING = 0.15
"""Share, at most, that it is enlarged or reduced by."""
SHIFT = 1 / 16
"""Share of its height and width, at most, that it is shifted by."""

NAMES = ("copier", "mean_of_support", "jittered_mean")
"""Of the landmarks, as `Figure` has them."""


def landmark_images(name: str, images: ClassImages, episodes: Episodes, rows: np.ndarray, seed: int) -> Tensor:
    """Images uint8 (m, c, h, w) of a landmark, for some rows (m,) of the episodes.

    `copier` is the first image of each support, `mean_of_support` the mean of its images, `jittered_mean` that mean
    after `jittered`.
    """
    if name == "copier":
        return images.uint8(episodes.supports[rows, 0])
    mean = images.uint8(episodes.supports[rows]).float().mean(dim=1)
    if name == "jittered_mean":
        mean = jittered(mean, rows, seed)
    return mean.round().to(torch.uint8)


def jittered(images: Tensor, index: np.ndarray, seed: int) -> Tensor:
    """Images, each rotated, scaled and shifted at random, bilinear, with edges repeated.

    Angle, scale and both shifts are uniform up to `ROTATION`, `SCALING` and `SHIFT` in either direction, and depend on
    nothing but seed and index.

    Args:
        images: float (n, c, h, w).
        index: global sample index of each (n,).
        seed: draws them.
    """
    bits = random_bits(np.asarray(index)[:, None], np.arange(4), seed)
    angle, scale, down, right = torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) / 2**52 - 1).T
    angle, scale = angle * math.radians(ROTATION), 1 + SCALING * scale
    height, width = images.shape[-2:]
    # From a place in the new image to one in the old, in units of half the image.
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [
        torch.stack([cos, sin * height / width, 2 * SHIFT * right], dim=1),
        torch.stack([-sin * width / height, cos, 2 * SHIFT * down], dim=1),
    ]
    grid = affine_grid(torch.stack(rows, dim=1).to(images), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
