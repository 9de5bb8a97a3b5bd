"""Metrics of generated images: torchmetrics on torch-fidelity's feature extractors."""

from lightning_vfs.metrics.extractors import INCEPTION, METRICS, ImageFeatures, check_metrics
from lightning_vfs.metrics.few_shot import FewShotAccuracy, check_way
from lightning_vfs.metrics.fidelity import FIGURES, FidelityMetric, FidelityOptions, check_classes, check_enough
from lightning_vfs.metrics.frechet import frechet_distance
from lightning_vfs.metrics.glyph_cnn import GlyphCNN

__all__ = [
    "FIGURES",
    "INCEPTION",
    "METRICS",
    "FewShotAccuracy",
    "FidelityMetric",
    "FidelityOptions",
    "GlyphCNN",
    "ImageFeatures",
    "check_classes",
    "check_enough",
    "check_metrics",
    "check_way",
    "frechet_distance",
]
