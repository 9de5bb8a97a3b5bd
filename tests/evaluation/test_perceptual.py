"""LPIPS between pairs of a class, with VGG16 of random weights in a file of torchvision's form."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchvision.models import VGG16_Weights, vgg

from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.evaluation import EvaluationPlan, evaluate
from lightning_vfs.metrics import perceptual
from lightning_vfs.metrics.perceptual import PairwiseLPIPS, compared_pixels
from tests.callbacks.conftest import Painter, Patterns
from tests.evaluation.test_evaluate import Copier, plan_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory) -> Path:
    """With torchvision's file of VGG16, of its convolutions alone: the rest has 470 MB, and LPIPS does not use it."""
    home = tmp_path_factory.mktemp("torch")
    torch.manual_seed(0)
    features = vgg.make_layers(vgg.cfgs["D"])
    path = home / "hub" / "checkpoints" / Path(VGG16_Weights.IMAGENET1K_V1.url).name
    path.parent.mkdir(parents=True)
    torch.save({f"features.{name}": values for name, values in features.state_dict().items()}, path)
    return home


@pytest.fixture
def network(torch_home, monkeypatch) -> PairwiseLPIPS:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))

    def without_classifier(weights: VGG16_Weights) -> SimpleNamespace:
        features = vgg.make_layers(vgg.cfgs["D"])
        values = weights.get_state_dict(progress=False, check_hash=True)
        features.load_state_dict({name.removeprefix("features."): value for name, value in values.items()})
        return SimpleNamespace(features=features)

    monkeypatch.setattr("torchvision.models.vgg16", without_classifier)
    return PairwiseLPIPS()


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_mean_of_all_pairs_of_a_class(network, channels) -> None:
    images = torch.randint(0, 256, (7, channels, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([3, 0, 3, 1, 0, 3, 3])
    found = network.of_classes(images, labels, seed=0, device=CPU)
    assert list(found) == [0, 3], "class 1 has one image alone"
    for label, value in found.items():
        rows = [i for i, each in enumerate(labels.tolist()) if each == label]
        colour = images.expand(-1, 3, -1, -1).float() / 255
        pairs = torch.tensor([(i, j) for i in rows for j in rows if i < j])
        each = learned_perceptual_image_patch_similarity(
            colour[pairs[:, 0]], colour[pairs[:, 1]], "vgg", normalize=True
        )
        assert value == pytest.approx(each.item(), rel=1e-4)
    assert network.of_classes(images[:1], labels[:1], 0, CPU) == {}


def test_of_many_pairs_some_are_drawn_by_seed(network, monkeypatch) -> None:
    labels = np.repeat([0, 2], [12, 3])
    everything = {tuple(pair) for pair in zip(*perceptual._pairs(labels, 0)[:2], strict=True)}
    assert everything == {(i, j) for i in range(15) for j in range(i + 1, 15) if labels[i] == labels[j]}
    monkeypatch.setattr(perceptual, "MOST_PAIRS", 5)
    draws = [perceptual._pairs(labels, seed) for seed in (0, 0, 1)]
    first, again, other = ({tuple(pair) for pair in zip(*draw[:2], strict=True)} for draw in draws)
    assert first == again != other and first < everything and np.bincount(draws[0][2]).tolist() == [5, 0, 3]


@pytest.mark.parametrize("size", [8, 32, 50])
def test_images_are_compared_at_one_size(size) -> None:
    pixels = compared_pixels(torch.full((2, 1, size, size), 77, dtype=torch.uint8))
    assert pixels.shape == (2, 1, 32, 32) and pixels.dtype == torch.uint8 and (pixels == 77).all()


def test_it_is_a_figure_with_floor_and_copier(network, tiny) -> None:
    """Of a copier it is the copier's; of images that do not vary it is 0."""
    data = Patterns(classes=12, per_class=4)
    plan = plan_of(num_images=16, images_per_class=3, lpips=True, few_shot_way=None)
    record = evaluate(Copier(), data, plan)
    figure = record.figures["lpips/out"]
    assert figure.copier == pytest.approx(figure.value, rel=1e-6) and figure.floor > 0 < figure.standard_error
    assert len(figure.replicates) == 5 and record.splits["out"].num_images == 15
    assert "500 pairs a class" in record.metrics.lpips

    class Constant(Painter):
        def generate(self, support, index, **sampling):
            return torch.zeros(len(index), 1, 8, 8)

    assert evaluate(Constant(), data, plan).figures["lpips/out"].value == 0


def test_what_is_missing_or_damaged_is_named(torch_home, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = Path(VGG16_Weights.IMAGENET1K_V1.url).name
    with pytest.raises(EvaluationError, match=rf"{tmp_path}/hub/checkpoints/{name} is not there: get https://.*{name}"):
        PairwiseLPIPS()
    file = tmp_path / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no weights")
    with pytest.raises(EvaluationError, match=r"\(10 bytes\) does not hold VGG16's weights"):
        PairwiseLPIPS()
    with pytest.raises(ConfigError, match="lpips compares generated images, but metrics is empty"):
        EvaluationPlan(lpips=True, metrics=[], vlb_images=2)
