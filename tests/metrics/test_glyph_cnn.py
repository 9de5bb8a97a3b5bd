"""glyph-cnn: its figures are what they should be on real glyphs, and react to what is wrong with them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torchvision.transforms.functional import gaussian_blur

from lightning_vfs.data.glyphs import GlyphSets
from lightning_vfs.metrics import FewShotAccuracy, FidelityMetric, ImageFeatures, frechet_distance, glyph_cnn

pytestmark = pytest.mark.numeric

WEIGHTS = Path(glyph_cnn.__file__).with_name("glyph_cnn.safetensors")


@pytest.fixture(scope="module")
def data():
    return GlyphSets()


@pytest.fixture(scope="module")
def features():
    return ImageFeatures("glyph-cnn")


@pytest.fixture(scope="module")
def unseen(data, features):
    """Images of classes that it was not trained on, their features and labels, in random order."""
    split = data.split("test")
    order = np.random.default_rng(0).permutation(len(split))
    images = split.uint8(order)
    return images, features_of(features, images), torch.from_numpy(split.labels[order])


def features_of(features, images):
    return torch.cat([features(part)["features"] for part in images.split(500)])


def test_registration_is_idempotent():
    glyph_cnn.register()
    glyph_cnn.register()
    assert torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY["glyph-cnn"] is glyph_cnn.GlyphCNN


def test_weights_are_small_and_from_training_classes_only(data):
    assert WEIGHTS.stat().st_size < 1_000_000
    record = glyph_cnn.training_record()
    classes = data.split("train").class_names
    assert record["classes_sha256"] == hashlib.sha256(json.dumps(classes).encode()).hexdigest()


def test_takes_images_of_any_size_and_colour(features, unseen):
    images, expected, _ = unseen
    grey, expected = images[:50], expected[:50]
    assert torch.allclose(features(grey.repeat(1, 3, 1, 1))["features"], expected, atol=1e-4)
    larger = grey.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(features(larger)["features"], expected, atol=1e-4)


def test_layers_for_all_metrics():
    layers = ImageFeatures("glyph-cnn", metrics=("fid", "kid", "isc", "prc"))
    assert layers.dims["features"] == 64
    assert layers.dims[layers.layers["isc"]] > 1000


def test_fidelity_metric_gives_its_frechet_distance(features, unseen):
    images, x, _ = unseen
    metric = FidelityMetric(features)
    metric.update(images[:200], real=False, index=torch.arange(200))
    metric.update(images[200:500], real=True, index=torch.arange(300))
    assert metric.compute()["fid"].item() == pytest.approx(frechet_distance(x[:200], x[200:500]), rel=1e-4)
    assert metric.real_features()["features"].shape == (300, 64)


def test_fid_is_near_zero_between_halves_of_real_images(unseen):
    _, x, _ = unseen
    half = len(x) // 2
    all_the_same = x.mean(dim=0).expand(half, -1)
    assert frechet_distance(x[:half], x[half:]) < 0.03 * frechet_distance(all_the_same, x[half:])


def test_fid_grows_with_blur_and_noise(features, unseen):
    images, x, _ = unseen
    half = len(x) // 2
    fid = [
        frechet_distance(features_of(features, changed), x[half:]) for changed in blurred_more_and_more(images[:half])
    ]
    assert fid[0] < fid[1] / 1.5 < fid[2] / 6 < fid[3] / 15
    fid = [frechet_distance(features_of(features, changed), x[half:]) for changed in noisier_and_noisier(images[:half])]
    assert fid[0] < fid[1] / 1.05 < fid[2] / 3 < fid[3] / 20


def blurred_more_and_more(images):
    return [images] + [gaussian_blur(images, 5, sigma) for sigma in (0.5, 1.0, 2.0)]


def noisier_and_noisier(images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return [images] + [(images + deviation * noise).clamp(0, 255).to(torch.uint8) for deviation in (16, 32, 64)]


def test_fid_grows_as_classes_are_dropped(unseen):
    _, x, labels = unseen
    half = len(x) // 2
    kept = [labels[:half] < classes for classes in (210, 100, 20, 5)]
    fid = [frechet_distance(x[:half][mask], x[half:]) for mask in kept]
    assert fid[0] < fid[1] / 4 < fid[2] / 12 < fid[3] / 24


def test_class_confusion_is_seen_by_few_shot_accuracy_and_not_by_fid(unseen):
    _, x, labels = unseen
    metric = FewShotAccuracy(x, labels, way=20)
    metric.update(x, labels, torch.arange(len(x)), leave_one_out=True)
    assert metric.compute().item() > 0.98
    metric.reset()
    metric.update(x, labels[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))], torch.arange(len(x)))
    assert metric.compute().item() == pytest.approx(1 / 20, abs=0.015)
