"""ImageFeatures: extractors by name, and what a user hears when their weights can't be had."""

import pickle
import urllib.error

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.metrics import INCEPTION, ImageFeatures


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
    with pytest.raises(EvaluationError, match=r"nowhere\.pth is no file"):
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


def test_code_in_a_weights_file_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(EvaluationError):
        ImageFeatures(INCEPTION, weights_path=path)
    assert not ran.exists()


@pytest.mark.slow
def test_true_inception_architecture_with_random_weights(tmp_path, images, monkeypatch):
    import torch_fidelity

    from lightning_vfs.metrics import FidelityMetric

    path = tmp_path / "inception.pth"
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: None)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *a, **k: None)
        network = FEATURE_EXTRACTORS_REGISTRY[INCEPTION](INCEPTION, ["2048"])
    torch.save(network.state_dict(), path)

    features = ImageFeatures(weights_path=path)
    assert features.layers == {"fid": "2048"}
    assert features.dims == {"2048": 2048}
    metric = FidelityMetric(features)
    for real, batch in ((False, images(6, seed=1)), (True, images(5, seed=2))):
        metric.update(batch, real=real, index=torch.arange(len(batch)))
    command = torch_fidelity.calculate_metrics(
        input1=_Listed(images(6, seed=1)),
        input2=_Listed(images(5, seed=2)),
        fid=True,
        feature_extractor_weights_path=str(path),
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert metric.compute()["fid"].item() == pytest.approx(command["frechet_inception_distance"], rel=1e-4)


class _Listed(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]
