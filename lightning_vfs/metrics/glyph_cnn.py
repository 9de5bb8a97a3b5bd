"""glyph-cnn: a small classifier of glyphs whose features stand in for Inception's on the built-in data set.

Its weights come with the package. `scripts/train_glyph_cnn.py` made them from training classes only; today it is
`lightning-vfs extractor fit` on `GlyphSets`.
"""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from lightning_vfs.metrics.classifier import Classifier, ClassifierFeatures

NAME = "glyph-cnn"
IMAGE_SIZE = 16


class GlyphCNN(ClassifierFeatures):
    """The classifier as a feature extractor of torch-fidelity: uint8 (n, 3, h, w) in, a tuple of layers out.

    Images are averaged to grey and, by averaging of pixels, resized to 16 x 16.
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if feature_extractor_weights_path is None:
            with as_file(files("lightning_vfs.metrics") / "glyph_cnn.safetensors") as path:
                weights = load_file(path)
        else:
            weights = load_file(feature_extractor_weights_path)
        classifier = Classifier(len(weights["head.bias"]), channels=1, image_size=IMAGE_SIZE)
        classifier.load_state_dict(weights)
        super().__init__(name, features_list, classifier)


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
