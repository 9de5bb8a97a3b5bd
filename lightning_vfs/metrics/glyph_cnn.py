"""glyph-cnn: a small classifier of glyphs whose features stand in for Inception's on the built-in data set.

Its weights come with the package; `scripts/train_glyph_cnn.py` makes them, from training classes only.
"""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

NAME = "glyph-cnn"
IMAGE_SIZE = 16
FEATURES = 64


class GlyphClassifier(nn.Module):
    """Convolutional classifier of grey glyphs (n, 1, 16, 16) in [-1, 1]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, 32),
            *_convolution(32, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (IMAGE_SIZE // 4) ** 2, FEATURES),
        )
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, 64) and logits (n, num_classes)."""
        features = self.features(images)
        return features, self.head(features)


def _convolution(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class GlyphCNN(FeatureExtractorBase):
    """The classifier as a feature extractor of torch-fidelity: uint8 (n, 3, h, w) in, a tuple of layers out.

    Images are averaged to grey and, by averaging of pixels, resized to 16 x 16. Layers: `features` (n, 64), for FID,
    KID, precision and recall, and `logits` (n, classes), for the Inception score.
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            with as_file(files("lightning_vfs.metrics") / "glyph_cnn.safetensors") as path:
                weights = load_file(path)
        else:
            weights = load_file(feature_extractor_weights_path)
        self.classifier = GlyphClassifier(num_classes=len(weights["head.bias"]))
        self.classifier.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """The requested layers, each float32 (n, ...)."""
        images = input.float().mean(dim=1, keepdim=True)
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
        features, logits = self.classifier(images / 127.5 - 1)
        layers = {"features": features, "logits": logits}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)


def register() -> None:
    """Make `glyph-cnn` known to torch-fidelity; once, however often it is called."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, GlyphCNN)


def training_record(path: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """What the weights file says of its making: data, classes' hash, seeds, accuracies."""
    with (
        as_file(files("lightning_vfs.metrics") / "glyph_cnn.safetensors") as own,
        safe_open(path or own, "pt") as weights,
    ):
        return dict(weights.metadata() or {})
