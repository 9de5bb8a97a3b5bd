"""ImageFeatures: extractors by name, and the error if their weights cannot be loaded."""

import hashlib
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.metrics import INCEPTION, METRICS, FidelityMetric, FidelityOptions, ImageFeatures, glyph_cnn
from lightning_vfs.metrics.extractors import _sha256_of_tensors

GLYPH_WEIGHTS = Path(glyph_cnn.__file__).with_name("glyph_cnn.safetensors")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(inception, "load_state_dict_from_url", refuse)


def test_grey_is_repeated_to_three_channels(tiny, images):
    features = ImageFeatures(tiny)
    grey = images(5, channels=1)
    assert torch.equal(features(grey)["6"], features(grey.repeat(1, 3, 1, 1))["6"])


def test_extractor_is_in_evaluation_mode_without_gradients_and_in_float32_under_autocast(tiny, images):
    features = ImageFeatures(tiny)
    assert not features._extractor.training
    expected = features(images(5))["6"]
    assert not expected.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(images(5))["6"], expected)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.uint8)])
def test_images_of_another_kind_are_refused(tiny, wrong):
    with pytest.raises(ValueError, match="uint8 of shape"):
        ImageFeatures(tiny)(wrong)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(EvaluationError, match=r"no feature extractor 'inception'; known: .*inception-v3-compat.*glyph"):
        ImageFeatures("inception")


def test_without_a_network_the_ways_out_are_named(no_network):
    with pytest.raises(EvaluationError) as error:
        ImageFeatures(INCEPTION)
    for way_out in (inception.URL_INCEPTION_V3, "weights_path", "glyph-cnn", "no network"):
        assert way_out in str(error.value)


def test_missing_weights_file_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"nowhere\.pth is not a file"):
        ImageFeatures(INCEPTION, weights_path=tmp_path / "nowhere.pth")


def test_truncated_weights_file_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"x": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(EvaluationError, match=r"weights\.pth \(2,000 bytes\) does not hold .* damaged"):
        ImageFeatures(INCEPTION, weights_path=path)


def test_weights_of_another_network_are_refused(tmp_path, tiny):
    path = tmp_path / "weights.pth"
    torch.save({"x": torch.randn(3)}, path)
    for name in (INCEPTION, "glyph-cnn"):
        with pytest.raises(EvaluationError, match="another network"):
            ImageFeatures(name, weights_path=path)


@pytest.mark.parametrize("name", [INCEPTION, "vgg16"])
def test_code_in_a_weights_file_is_not_run(tmp_path, name):
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(EvaluationError):
        ImageFeatures(name, metrics=["prc"], weights_path=path)
    assert not ran.exists()


def test_weights_of_another_network_in_the_same_format_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    for weights in (
        {"x": torch.zeros(3)},
        {"head.bias": torch.zeros(3)},
        load_file(GLYPH_WEIGHTS) | {"x": torch.ones(1)},
    ):
        save_file(weights, path)
        with pytest.raises(EvaluationError, match=r"weights\.safetensors .* another network"):
            ImageFeatures("glyph-cnn", weights_path=path)


@pytest.mark.parametrize("size", [0, 100, 200_000])
def test_truncated_safetensors_are_refused(tmp_path, size):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(GLYPH_WEIGHTS.read_bytes()[:size])
    with pytest.raises(EvaluationError, match=rf"weights\.safetensors \({size:,} bytes\) does not hold .* damaged"):
        ImageFeatures("glyph-cnn", weights_path=path)


def test_layers_are_the_extractors_own_for_each_metric(tiny):
    features = ImageFeatures(tiny, metrics=("fid", "isc", "prc"))
    assert features.layers == {"fid": "6", "isc": "logits", "prc": "6"}
    assert features.dims == {"6": 6, "logits": 5}


@pytest.mark.parametrize(
    ("metrics", "found"), [(("fid", "recall"), "no metric 'recall'"), ((), "no metric to compute"), ("fid", "'f'")]
)
def test_unknown_metrics_are_refused_with_the_known_ones(tiny, metrics, found):
    with pytest.raises(EvaluationError, match=rf"There is .*{found}; known: fid, kid, isc, prc"):
        ImageFeatures(tiny, metrics=metrics)


def test_a_metric_that_the_extractor_has_no_layer_for_is_named(tiny, monkeypatch):
    layers = {"fid": "6"}
    extractor = FEATURE_EXTRACTORS_REGISTRY[tiny]
    monkeypatch.setattr(extractor, "get_default_feature_layer_for_metric", staticmethod(layers.__getitem__))
    with pytest.raises(EvaluationError, match=r"'tiny-metrics' names no layer for metric 'isc'"):
        ImageFeatures(tiny, metrics=("fid", "isc"))


def test_weights_are_known_by_the_hash_of_their_file(tmp_path):
    shipped = hashlib.sha256(GLYPH_WEIGHTS.read_bytes()).hexdigest()
    assert ImageFeatures("glyph-cnn").weights_sha256 == shipped
    given = tmp_path / "weights.safetensors"
    save_file(load_file(GLYPH_WEIGHTS) | {"head.bias": torch.zeros_like(load_file(GLYPH_WEIGHTS)["head.bias"])}, given)
    found = ImageFeatures("glyph-cnn", weights_path=given).weights_sha256
    assert found == hashlib.sha256(given.read_bytes()).hexdigest() != shipped


def test_downloaded_weights_are_known_by_the_hash_of_their_file(tmp_path, monkeypatch, untrained_inception):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def download(url, progress):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / url.split("/")[-1]).write_bytes(b"weights")

    untrained_inception(monkeypatch, download)
    assert ImageFeatures(INCEPTION).weights_sha256 == hashlib.sha256(b"weights").hexdigest()


def test_weights_without_a_file_are_known_by_the_hash_of_their_tensors(tiny):
    features = ImageFeatures(tiny)
    found = features.weights_sha256
    assert len(found) == 64
    assert ImageFeatures(tiny, metrics=("kid", "isc")).weights_sha256 == found
    changed = ImageFeatures(tiny)
    changed._extractor.weights[3, 2] += 1e-6
    assert changed.weights_sha256 != found


def test_hash_of_tensors_takes_all_types_and_any_order_and_sees_names_and_shapes():
    tensors = {
        "a": torch.arange(6.0),
        "b": torch.ones(2, 2, dtype=torch.bfloat16).T,
        "c": torch.tensor(3),
        "d": torch.empty(0),
    }
    found = _sha256_of_tensors(tensors)
    assert _sha256_of_tensors(dict(reversed(tensors.items()))) == found
    for changed in ({"a": torch.arange(6.0).view(2, 3)}, {"c": torch.tensor(4)}, {"e": torch.empty(0)}):
        assert _sha256_of_tensors(tensors | changed) != found
    assert _sha256_of_tensors({f"{name}{name}": tensor for name, tensor in tensors.items()}) != found


def test_features_are_of_the_stated_type(tiny, images):
    features = ImageFeatures(tiny)
    assert str(features(images(2))["6"].dtype) == f"torch.{features.dtype}"


@pytest.fixture
def untrained_inception():
    """(monkeypatch, download) -> Inception can be built without a network, with random weights."""

    def patch(monkeypatch, download):
        monkeypatch.setattr(inception, "load_state_dict_from_url", download)
        monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *args, **kwargs: None)

    return patch


@pytest.mark.slow
def test_true_inception_architecture_with_random_weights(tmp_path, images, monkeypatch, untrained_inception, command):
    path = tmp_path / "inception.pth"
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        untrained_inception(patch, lambda url, progress: None)
        network = FEATURE_EXTRACTORS_REGISTRY[INCEPTION](INCEPTION, ["2048"])
    torch.save(network.state_dict(), path)

    features = ImageFeatures(metrics=METRICS, weights_path=path)
    assert features.layers == {"fid": "2048", "kid": "2048", "isc": "logits_unbiased", "prc": "2048"}
    assert features.dims == {"2048": 2048, "logits_unbiased": 1008}
    options = {"kid_subset_size": 4, "isc_splits": 2}
    metric = FidelityMetric(features, options=FidelityOptions(**options))
    generated, real = images(6, seed=1), images(5, seed=2)
    metric.update(generated, real=False, index=torch.arange(6))
    metric.update(real, real=True, index=torch.arange(5))
    expected = command(generated, real, METRICS, INCEPTION, feature_extractor_weights_path=str(path), **options)
    assert {name: figure.item() for name, figure in metric.compute().items()} == pytest.approx(expected, rel=1e-4)
    assert metric.notes()["fid"].endswith("6 generated and 5 real images, 2,048 features")
