"""FidelityMetric: the fidelity command's figure, whatever the order and batches that images come in."""

import pytest
import torch
import torch_fidelity
from torchvision.transforms.functional import to_pil_image

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.metrics import FidelityMetric, ImageFeatures


def figure(metric):
    return metric.compute()["fid"].item()


def filled(name, generated, real, batch_size=1000, order=None):
    metric = FidelityMetric(ImageFeatures(name))
    for images, is_real in ((generated, False), (real, True)):
        rows = torch.arange(len(images)) if order is None else order(len(images))
        for batch in rows.split(batch_size):
            metric.update(images[batch], real=is_real, index=batch)
    return metric


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num", [40, 4])
def test_equals_the_fidelity_command_on_the_same_pngs(tiny, images, tmp_path, channels, num):
    generated, real = images(num, channels, seed=1), images(30, channels, seed=2)
    for folder, batch in (("generated", generated), ("real", real)):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(batch):
            to_pil_image(image).save(tmp_path / folder / f"{i:04d}.png")
    command = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "generated"),
        input2=str(tmp_path / "real"),
        fid=True,
        feature_extractor=tiny,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    assert figure(filled(tiny, generated, real)) == pytest.approx(command["frechet_inception_distance"], rel=1e-6)


def test_does_not_depend_on_order_batches_or_repetition(tiny, images):
    generated, real = images(40, seed=1), images(30, seed=2)
    expected = figure(filled(tiny, generated, real))
    shuffled = filled(tiny, generated, real, batch_size=7, order=lambda n: torch.arange(n).flip(0))
    shuffled.update(generated[:5], real=False, index=torch.arange(5))
    assert figure(shuffled) == pytest.approx(expected, rel=1e-9)


def test_an_empty_batch_changes_nothing(tiny, images):
    metric = filled(tiny, images(40, seed=1), images(30, seed=2))
    expected = figure(metric)
    metric.update(images(0), real=False, index=torch.empty(0, dtype=torch.int64))
    assert figure(metric) == expected


@pytest.mark.parametrize(("generated", "real"), [(1, 5), (5, 1), (0, 5)])
def test_needs_two_images_of_each_kind(tiny, images, generated, real):
    metric = filled(tiny, images(generated, seed=1), images(real, seed=2))
    with pytest.raises(EvaluationError, match=f"at least 2 .* {generated} generated and {real} real"):
        metric.compute()


def test_reset_can_keep_the_real_images(tiny, images):
    real, first, second = images(30, seed=2), images(20, seed=1), images(20, seed=3)
    metric = FidelityMetric(ImageFeatures(tiny), reset_real=False)
    metric.update(real, real=True, index=torch.arange(30))
    for generated in (first, second):
        metric.reset()
        metric.update(generated, real=False, index=torch.arange(20))
        assert figure(metric) == pytest.approx(figure(filled(tiny, generated, real)), rel=1e-12)
    metric = filled(tiny, first, real)
    metric.reset()
    assert len(metric.real_features()["6"]) == 0


def test_takes_features_for_images(tiny, images):
    generated, real = images(40, seed=1), images(30, seed=2)
    features = ImageFeatures(tiny)
    metric = FidelityMetric(features)
    metric.update(features(generated), real=False, index=torch.arange(40))
    metric.update(features(real), real=True, index=torch.arange(30))
    assert figure(metric) == figure(filled(tiny, generated, real))


def test_adds_no_weights_to_a_module_that_holds_it(tiny):
    module = torch.nn.Module()
    module.fid = FidelityMetric(ImageFeatures(tiny))
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
