"""Metrics of generated images: torchmetrics on torch-fidelity's feature extractors."""

from lightning_vfs.metrics.extractors import INCEPTION, ImageFeatures
from lightning_vfs.metrics.few_shot import FewShotAccuracy
from lightning_vfs.metrics.fidelity import FidelityMetric
from lightning_vfs.metrics.frechet import frechet_distance
from lightning_vfs.metrics.glyph_cnn import GlyphCNN

__all__ = [
    "INCEPTION",
    "FewShotAccuracy",
    "FidelityMetric",
    "GlyphCNN",
    "ImageFeatures",
    "frechet_distance",
]
