"""A feature extractor that takes no time, and images for it."""

import pytest
import torch
import torch_fidelity
from torch.nn.functional import adaptive_avg_pool2d
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

TINY = "tiny-metrics"


class TinyExtractor(FeatureExtractorBase):
    """Six fixed nonlinear functions of an image's 4 x 4 thumbnail, and five logits of them for the Inception score."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("weights", torch.randn(48, 6, generator=rng))
        self.register_buffer("head", torch.randn(6, 5, generator=rng))

    def forward(self, input):
        features = torch.relu(adaptive_avg_pool2d(input.float() / 255, 4).flatten(1) @ self.weights)
        layers = {"6": features, "logits": features @ self.head}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return ("6", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"fid": "6", "kid": "6", "isc": "logits", "prc": "6"}[metric]

    @staticmethod
    def can_be_compiled():
        return False


@pytest.fixture
def tiny():
    if TINY not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(TINY, TinyExtractor)
    return TINY


@pytest.fixture
def images():
    """(number, channels, seed) -> uint8 images that differ in more than noise."""

    def make(num, channels=3, seed=0):
        rng = torch.Generator().manual_seed(seed)
        base = torch.rand(num, channels, 4, 4, generator=rng).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return (base * (200 + seed)).to(torch.uint8)

    return make


@pytest.fixture
def command():
    """(generated, real, metrics, feature_extractor, options) -> the fidelity command's figures, by our names."""

    def figures(generated, real, metrics, extractor, **options):
        found = torch_fidelity.calculate_metrics(
            **{"input1": _Listed.of(generated), "input2": _Listed.of(real), "feature_extractor": extractor}
            | {"cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True}
            | dict.fromkeys(metrics, True)
            | options
        )
        return {name: found[key] for name, key in KEYS.items() if key in found}

    return figures


KEYS = {
    "fid": torch_fidelity.KEY_METRIC_FID,
    "kid": torch_fidelity.KEY_METRIC_KID_MEAN,
    "kid_std": torch_fidelity.KEY_METRIC_KID_STD,
    "isc": torch_fidelity.KEY_METRIC_ISC_MEAN,
    "isc_std": torch_fidelity.KEY_METRIC_ISC_STD,
    "precision": torch_fidelity.KEY_METRIC_PRECISION,
    "recall": torch_fidelity.KEY_METRIC_RECALL,
}


class _Listed(torch.utils.data.Dataset):
    """Images (n, 3, h, w) as torch-fidelity takes them; a folder's path is passed on."""

    @classmethod
    def of(cls, images):
        return cls(images) if torch.is_tensor(images) else str(images)

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]
