"""LPIPS between pairs of images of a class: how much the images vary, as a network sees it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import VGG16_Weights

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.training.torch_files import load_torch_file

SIDE = 32
"""Height and width at which images are compared (LoFGAN, Gu et al. 2021)."""
MOST_PAIRS = 500
"""Pairs of a class that are compared, drawn by seed where there are more."""
BATCH = 128
"""Pairs that the network sees at a time."""
IN_WORDS = f"vgg16 of torchmetrics {version('torchmetrics')}, {SIDE} x {SIDE}, at most {MOST_PAIRS} pairs a class"


def compared_pixels(images: Tensor) -> Tensor:
    """Images uint8 (n, c, h, w) at the size at which they are compared, uint8 (n, c, 32, 32)."""
    resized = interpolate(images.float(), (SIDE, SIDE), mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


class PairwiseLPIPS:
    """LPIPS (Zhang et al. 2018) by torchmetrics, with VGG16's features; it downloads nothing.

    torchmetrics has LPIPS's own weights, VGG16's are those of torchvision.

    Raises:
        EvaluationError: the file of VGG16's weights is missing or damaged.
    """

    def __init__(self) -> None:
        url = VGG16_Weights.IMAGENET1K_V1.url
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        if not path.is_file():
            raise EvaluationError(
                f"lpips needs torchvision's weights of VGG16, and {path} is not there: get {url} (528 MB) and put it "
                "there (the environment variable TORCH_HOME moves the folder), or leave lpips out."
            )
        try:
            load_torch_file(path)  # torchvision unpickles whatever a file holds; mere weights run no code
            self._metric = LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True)
        except Exception as error:  # whatever pickle, zipfile and load_state_dict raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EvaluationError(
                f"{path} ({path.stat().st_size:,} bytes) does not hold VGG16's weights ({reason}): get {url} again."
            ) from error

    @torch.no_grad()
    def of_classes(self, images: Tensor, labels: Tensor, seed: int, device: torch.device) -> dict[int, float]:
        """Mean distance of pairs of each class that has two images, by class; at least 0, higher is more variety.

        Args:
            images: uint8 (n, c, 32, 32), c = 1 or 3, as `compared_pixels` gives them.
            labels: int64 (n,), classes.
            seed: draws the pairs where a class has more than `MOST_PAIRS`.
            device: on which the network runs.
        """
        network = self._metric.net.to(device)
        firsts, seconds, classes = _pairs(labels.numpy(), seed)
        found = []
        for start in range(0, len(classes), BATCH):
            rows = slice(start, start + BATCH)
            one, other = (
                images[torch.from_numpy(each[rows])].to(device).expand(-1, 3, -1, -1).float() / 255
                for each in (firsts, seconds)
            )
            found.append(network(one, other, normalize=True).reshape(-1).double().cpu())
        distances = torch.cat(found) if found else torch.empty(0, dtype=torch.float64)
        sums = np.bincount(classes, distances.numpy())
        counts = np.bincount(classes)
        return {int(c): float(sums[c] / counts[c]) for c in np.flatnonzero(counts)}


def _pairs(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the first and the second image of every pair, and its class."""
    firsts, seconds, classes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        total = len(rows) * (len(rows) - 1) // 2
        codes = np.arange(total)
        if total > MOST_PAIRS:
            codes = np.sort(np.random.default_rng((seed, int(label), 6)).choice(total, MOST_PAIRS, replace=False))
        # Pairs (i, j) with i < j, numbered by j and then i.
        j = ((1 + np.sqrt(1 + 8 * codes.astype(np.float64))) / 2).astype(np.int64)
        firsts.append(rows[codes - j * (j - 1) // 2])
        seconds.append(rows[j])
        classes.append(np.full(len(codes), label))
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(classes)
