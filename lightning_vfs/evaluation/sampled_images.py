"""The generated images that a record describes, by which `verify` finds out whether a model makes the same."""

from __future__ import annotations

import base64
import binascii
import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.evaluation.record import SampledImage
from lightning_vfs.training.ranks import gather_objects

SAMPLED = 32
"""Images of a split that a record describes."""
SIDE = 8
"""Height and width of their thumbnails."""


def sampled_indices(num_images: int) -> np.ndarray:
    """Global indices of the images that a record describes, evenly spread: int64, ascending, at most `SAMPLED`."""
    return np.unique(np.linspace(0, num_images - 1, SAMPLED).astype(np.int64))


def describe_images(pixels: Tensor, index: np.ndarray) -> dict[str, SampledImage]:
    """Descriptions of images uint8 (n, c, h, w) by their global index (n,)."""
    pixels = pixels.cpu()
    thumbs = adaptive_avg_pool2d(pixels.float(), SIDE).round().to(torch.uint8)
    return {
        str(i): SampledImage(
            hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest(),
            base64.b64encode(thumb.numpy().tobytes()).decode(),
        )
        for i, image, thumb in zip(index.tolist(), pixels, thumbs, strict=True)
    }


class ImageSample:
    """Descriptions of the images of an evaluation that its record describes.

    Args:
        num_images: images that are generated, on all ranks.
    """

    def __init__(self, num_images: int) -> None:
        self._wanted = sampled_indices(num_images)
        self._found: dict[str, SampledImage] = {}

    def add(self, pixels: Tensor, index: np.ndarray) -> None:
        """Describe those among images uint8 (n, c, h, w) of global indices (n,) that are asked for."""
        rows = np.flatnonzero(np.isin(index, self._wanted))
        self._found |= describe_images(pixels[torch.from_numpy(rows).to(pixels.device)], index[rows])

    def gathered(self) -> dict[str, SampledImage]:
        """Descriptions of all ranks, in the order of their index. Collective."""
        everything = {i: image for each in gather_objects(self._found) for i, image in each.items()}
        return dict(sorted(everything.items(), key=lambda item: int(item[0])))


def thumbnail_difference(image: SampledImage, stated: SampledImage) -> int:
    """Largest difference of two images' thumbnails, in grey levels from 0 to 255.

    Raises:
        EvaluationError: the one that a record states is damaged.
    """
    try:
        one, other = (
            np.frombuffer(base64.b64decode(each.thumbnail, validate=True), np.uint8) for each in (image, stated)
        )
    except (binascii.Error, ValueError):
        one = other = np.empty(0, np.uint8)
    if not len(one) == len(other) > 0:
        raise EvaluationError("a thumbnail in the record is damaged: evaluate again.")
    return int(np.abs(one.astype(int) - other.astype(int)).max())
