"""A feature extractor that takes no time, and images for it."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

TINY = "tiny-metrics"


class TinyExtractor(FeatureExtractorBase):
    """Six fixed nonlinear functions of an image's 4 x 4 thumbnail."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        weights = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weights", weights)

    def forward(self, input):
        return (torch.relu(adaptive_avg_pool2d(input.float() / 255, 4).flatten(1) @ self.weights),)

    @staticmethod
    def get_provided_features_list():
        return ("6",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "6"

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
