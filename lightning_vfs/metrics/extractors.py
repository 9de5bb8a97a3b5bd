"""Feature extractors of torch-fidelity, by name, ready for images of any number of channels on any device."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import file_sha256, local_path
from lightning_vfs.metrics import extractor_folder, glyph_cnn
from lightning_vfs.metrics.classifier import ClassifierFeatures
from lightning_vfs.training.torch_files import load_torch_file

INCEPTION = "inception-v3-compat"
METRICS = ("fid", "kid", "isc", "prc")
"""Metrics of torch-fidelity: Fréchet distance, kernel distance, Inception score, precision and recall."""

glyph_cnn.register()


class ImageFeatures:
    """Features of uint8 images by one of torch-fidelity's extractors, in evaluation mode and float32.

    It is not a torch module, so a metric or callback that holds it adds nothing to a LightningModule's weights.

    Args:
        name: a name in torch-fidelity's registry: `inception-v3-compat`, `glyph-cnn`, or one registered by the user; or
            the folder of an extractor that `lightning-vfs extractor fit` has trained.
        metrics: metrics that the features are for (`fid`, `kid`, `isc`, `prc`); the extractor says which of its
            layers each of them takes.
        weights_path: the extractor's weights; by default torch-fidelity downloads them, `glyph-cnn` has its own.

    Attributes:
        name: of the extractor; of a folder, the name that its card gives.
        card: of a folder, what its extractor was trained on; None for others.
        layers: the layer of each metric.
        dims: features d of each layer.
        dtype: the features' type, by name.

    Raises:
        EvaluationError: unknown name or metric; weights that are missing, damaged or of another network.
    """

    dtype = "float32"

    def __init__(
        self,
        name: str = INCEPTION,
        metrics: Iterable[str] = ("fid",),
        weights_path: str | os.PathLike[str] | None = None,
    ) -> None:
        folder = extractor_folder.is_folder(name)
        if not folder and name not in FEATURE_EXTRACTORS_REGISTRY:
            known = ", ".join(FEATURE_EXTRACTORS_REGISTRY)
            raise EvaluationError(
                f"There is no feature extractor {name!r}; known: {known}, and folders of `lightning-vfs extractor "
                "fit`. Others are added with torch_fidelity.register_feature_extractor."
            )
        metrics = tuple(metrics)
        check_metrics(metrics)
        self.name = name
        self.card: dict[str, Any] | None = None
        self._extractor: FeatureExtractorBase
        self._weights_file: Path | None
        self.layers: dict[str, str] = {
            metric: ClassifierFeatures.get_default_feature_layer_for_metric(metric) if folder else _layer(name, metric)
            for metric in metrics
        }
        layers = sorted(set(self.layers.values()))
        if folder:
            self._take_folder(name, layers, weights_path)
        else:
            self._extractor = _build(name, layers, weights_path)
            self._weights_file = _weights_file(name, weights_path)
        probe = self(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
        self.dims: dict[str, int] = {layer: features.shape[1] for layer, features in probe.items()}

    def _take_folder(self, folder: str, layers: list[str], weights_path: str | os.PathLike[str] | None) -> None:
        if weights_path is not None:
            raise EvaluationError(
                f"feature_extractor is the folder {folder}, which has its own weights: leave out weights_path."
            )
        classifier, self.card = extractor_folder.load_extractor(folder)
        self.name = self.card["name"]
        self._extractor = ClassifierFeatures(self.name, layers, classifier)
        self._weights_file = local_path(folder, "feature_extractor") / extractor_folder.WEIGHTS

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the file that the weights came from; of all tensors of an extractor without its own file.

        The file is the one given, the one shipped or Inception's in torch hub's folder.
        """
        if self._weights_file is None:
            return _sha256_of_tensors(self._extractor.state_dict())
        return file_sha256(self._weights_file)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features by layer, each (n, d) float32, of uint8 images (n, c, h, w), c = 1 or 3, on the images' device.

        Raises:
            ValueError: images of another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                "Images for a feature extractor are uint8 of shape (n, 1 or 3, h, w); "
                f"got {images.dtype} of shape {tuple(images.shape)}."
            )
        if len(images) == 0:
            return {layer: torch.empty(0, dim, device=images.device) for layer, dim in self.dims.items()}
        self._extractor.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            features = self._extractor(images.expand(-1, 3, -1, -1).contiguous())
        by_layer: dict[str, Tensor] = self._extractor.convert_features_tuple_to_dict(features)
        return {layer: values.float() for layer, values in by_layer.items()}


def check_metrics(metrics: Iterable[str]) -> None:
    """Raise EvaluationError unless these are names of `METRICS`, at least one."""
    metrics = tuple(metrics)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        found = f"no metric {unknown[0]!r}" if unknown else "no metric to compute"
        raise EvaluationError(f"There is {found}; known: {', '.join(METRICS)} ('prc' is precision and recall).")


def _layer(name: str, metric: str) -> str:
    try:
        layer: str = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric(metric)
    except Exception as error:  # torch-fidelity's own extractors look it up in a dictionary
        raise EvaluationError(
            f"Feature extractor {name!r} names no layer for metric {metric!r} ({type(error).__name__}: {error}): "
            "leave the metric out, or let its get_default_feature_layer_for_metric name one."
        ) from error
    return layer


def _weights_file(name: str, weights_path: str | os.PathLike[str] | None) -> Path | None:
    """Where the weights of an extractor came from; None if that is not known."""
    if weights_path is not None:
        return local_path(weights_path, "weights_path")
    if name == glyph_cnn.NAME:
        return Path(glyph_cnn.__file__).with_name("glyph_cnn.safetensors")
    downloaded = _checkpoints() / Path(URL_INCEPTION_V3).name
    return downloaded if name == INCEPTION and downloaded.is_file() else None


def _checkpoints() -> Path:
    """Folder of torch hub's downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _sha256_of_tensors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _build(name: str, layers: list[str], weights_path: str | os.PathLike[str] | None) -> FeatureExtractorBase:
    path = None if weights_path is None else local_path(weights_path, "weights_path")
    if path is not None and not path.is_file():
        raise EvaluationError(f"The weights of feature extractor {name!r} are missing: {path} is not a file.")
    try:
        if path is not None and name != glyph_cnn.NAME:
            # torch-fidelity unpickles whatever the file holds; a file that loads as mere weights runs no code.
            load_torch_file(path)
        extractor = create_feature_extractor(
            name,
            layers,
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=None if path is None else str(path),
        )
    except Exception as error:  # whatever urllib, pickle, zipfile, safetensors and load_state_dict raise
        raise EvaluationError(_why_not(name, path, error)) from error
    return extractor.eval().requires_grad_(False)


def _why_not(name: str, path: Path | None, error: Exception) -> str:
    reason = (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
    )
    if path is not None:
        return (
            f"{path} ({path.stat().st_size:,} bytes) does not hold the weights of feature extractor {name!r}: "
            f"the file is damaged or belongs to another network ({reason})."
        )
    if name != INCEPTION:
        return f"Feature extractor {name!r} could not be built ({reason}). Its weights can be given by weights_path."
    checkpoints = _checkpoints()
    return (
        f"The weights of feature extractor {name!r} could not be downloaded or read from {checkpoints} ({reason}). "
        f"Ways out: get {URL_INCEPTION_V3} on a machine with a network and give the file as weights_path, "
        f"or put it into {checkpoints} (replacing a damaged one); for the built-in glyphs use "
        f"feature_extractor {glyph_cnn.NAME!r}, whose weights are in this package."
    )
