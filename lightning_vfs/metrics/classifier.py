"""A small convolutional classifier whose features stand in for Inception's on data that Inception does not know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

FEATURES = 64
SMALLEST, LARGEST = 16, 64
"""Sides of images in pixels; others are resized."""

_WIDTHS = (16, 24, 32, 64)


class Classifier(nn.Module):
    """Convolutional classifier of images (n, channels, image_size, image_size) in [-1, 1].

    Every stage has two convolutions and halves the image, until it has less than 8 pixels a side; each costs about as
    much as any other.

    Args:
        num_classes: classes.
        channels: 1 (grey) or 3 (RGB).
        image_size: height and width in pixels, from 16 to 64.
    """

    def __init__(self, num_classes: int, channels: int = 1, image_size: int = SMALLEST) -> None:
        super().__init__()
        self.num_classes, self.channels, self.image_size = num_classes, channels, image_size
        layers: list[nn.Module] = []
        side = image_size
        stages = sum(image_size >> halvings >= 8 for halvings in range(len(_WIDTHS)))
        for width in _WIDTHS[-stages:]:
            layers += [*_convolution(channels, width), *_convolution(width, width), nn.MaxPool2d(2)]
            channels, side = width, side // 2
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, FEATURES))
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, 64) and logits (n, num_classes)."""
        features = self.features(images)
        return features, self.head(features)

    def adapt(self, images: Tensor) -> Tensor:
        """Images (n, 1 or 3, h, w), float, with this network's channels and size.

        Colours are averaged to grey, grey is repeated; pixels are averaged when images get smaller.
        """
        if images.shape[1] != self.channels:
            images = images.mean(dim=1, keepdim=True) if self.channels == 1 else images.expand(-1, 3, -1, -1)
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = interpolate(images, (self.image_size, self.image_size), mode="area")
        return images


def _convolution(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class ClassifierFeatures(FeatureExtractorBase):
    """A classifier as a feature extractor of torch-fidelity: uint8 (n, 3, h, w) in, a tuple of layers out.

    Layers: `features` (n, 64), for FID, KID, precision and recall, and `logits` (n, classes), for the Inception score.

    Args:
        name: of the extractor.
        features_list: layers that it gives.
        classifier: the trained network.
    """

    def __init__(self, name: str, features_list: Sequence[str], classifier: Classifier) -> None:
        super().__init__(name, list(features_list))
        self.classifier = classifier
        self.eval().requires_grad_(False)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """The requested layers, each float32 (n, ...)."""
        features, logits = self.classifier(self.classifier.adapt(input.float()) / 127.5 - 1)
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
        return torch.zeros(1, 3, SMALLEST, SMALLEST, dtype=torch.uint8)
