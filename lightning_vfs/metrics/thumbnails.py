"""Distances between images that tolerate small shifts and mirroring: of thumbnails of 16 x 16 pixels."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

SIDE = 16
CHUNK = 2**22
"""Distances computed at a time."""


def thumbnails(images: Tensor) -> Tensor:
    """Means of pixels, float32 (n, c, 16, 16) on the CPU, of images uint8 (n, c, h, w)."""
    return adaptive_avg_pool2d(images.float(), SIDE).cpu()


def variants(thumbs: Tensor) -> Tensor:
    """Thumbnails (n, c, 16, 16) shifted by up to one pixel, edges repeated, and their mirror images: (n, 18, d)."""
    return thumbs.flatten(2)[:, :, _VARIANTS].transpose(1, 2).flatten(2)


def _variant_pixels() -> Tensor:
    """The pixel of a thumbnail that each pixel of each variant comes from, int64 (18, 256)."""
    pixels = torch.arange(SIDE * SIDE, dtype=torch.float32).view(1, SIDE, SIDE)
    padded = pad(pixels, (1, 1, 1, 1), mode="replicate")[0]
    shifted = [padded[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)]
    return torch.stack([*shifted, *(each.flip(-1) for each in shifted)]).flatten(1).long()


_VARIANTS = _variant_pixels()


def distances(thumbs: Tensor, real: Tensor) -> Tensor:
    """Distance of each thumbnail (n, c, 16, 16) from the nearest variant of each real one (m, c, 16, 16).

    Returns:
        float64 (n, m), in grey levels; NaN for thumbnails that are not finite.
    """
    x, y = variants(real).double(), thumbs.flatten(1).double()
    norms, found = x.square().sum(dim=2).flatten(), torch.empty(len(y), len(x), dtype=torch.float64)
    step = max(1, CHUNK // max(1, len(norms)))
    for start in range(0, len(y), step):
        rows = y[start : start + step]
        squared = rows.square().sum(dim=1, keepdim=True) - 2 * rows @ x.flatten(0, 1).T + norms
        found[start : start + step] = squared.view(len(rows), len(x), -1).amin(dim=2)
    return found.clamp(min=0).sqrt()


def identities(images: Tensor) -> Tensor:
    """The row of the first image that equals each one pixel by pixel, int64 (n,), of images uint8 (n, c, h, w)."""
    first: dict[bytes, int] = {}
    keys = digests(images)
    return torch.tensor([first.setdefault(key, i) for i, key in enumerate(keys)], dtype=torch.int64)


def digests(images: Tensor) -> list[bytes]:
    """The same bytes for images uint8 (n, c, h, w) that equal each other pixel by pixel."""
    rows = images.cpu().flatten(1).contiguous().numpy()
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
