"""Feature extractors of one's own data: training, files, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_vfs.core.errors import ConfigError, DataError, EvaluationError
from lightning_vfs.data import SetDataModule
from lightning_vfs.metrics import FewShotAccuracy, ImageFeatures, glyph_cnn
from lightning_vfs.metrics.classifier import Classifier
from lightning_vfs.metrics.extractor_folder import check_name, check_new, load_extractor, remarks, save_extractor
from lightning_vfs.metrics.extractor_training import fit_extractor, held_out
from tests.callbacks.conftest import Patterns

DATA: dict[str, Any] = {"classes": 8, "per_class": 9, "split_fractions": (0.5, 0.0, 0.5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extractors") / "mine"
    classifier, card = fit_extractor(Patterns(**DATA), epochs=20)
    save_extractor(classifier, {"name": "patterns", **card}, path)
    return path


def test_it_classifies_images_that_it_was_not_trained_on(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    assert card["accuracy"] >= 0.75 and card["chance"] == 0.25
    assert (card["images"], card["held_out"], card["epochs"], card["seed"]) == (28, 8, 20, 0)
    assert card["classes"] == list(Patterns(**DATA).split("train").class_names)
    assert card["data"]["class"] == "tests.callbacks.conftest.Patterns"
    text = (folder / "README.md").read_text()
    assert (
        "# Feature extractor patterns" in text
        and f"{card['accuracy']:.1%} on 8 held-out images of the training classes (chance 25.00%)" in text
    )


def test_unseen_classes_are_told_apart_in_its_features(folder: Path) -> None:
    features, split = ImageFeatures(str(folder)), Patterns(**DATA).split("test")
    rows = features(split.images)["features"]
    labels = torch.from_numpy(split.labels)
    accuracy = FewShotAccuracy(rows, labels, 4)
    accuracy.update(rows, labels, torch.arange(len(rows)), leave_one_out=True)
    assert accuracy.compute() > 0.9


def test_the_seed_decides_all_and_the_global_random_state_is_left(folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again, _ = fit_extractor(Patterns(**DATA), epochs=20)
    other, _ = fit_extractor(Patterns(**DATA), epochs=20, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in stored.items())
    assert not torch.equal(other.head.weight, again.head.weight)


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 28), (3, 32), (1, 64)])
def test_networks_take_images_of_any_size_and_colour(tmp_path: Path, channels: int, size: int) -> None:
    card = {"images": 1, "held_out": 1, "accuracy": 1.0, "chance": 0.5, "classes": ["a", "b"], "epochs": 1, "seed": 0}
    save_extractor(
        Classifier(2, channels, size).eval(), {"name": "x", "seconds": 1.0, "versions": {}, **card}, tmp_path / "x"
    )
    features = ImageFeatures(str(tmp_path / "x"), ["fid", "isc"])
    assert features.dims == {"features": 64, "logits": 2}
    for c, side in ((1, 8), (3, 16), (1, 100)):
        images = torch.randint(0, 256, (2, c, side, side), dtype=torch.uint8)
        assert features(images)["features"].shape == (2, 64)
    grey = torch.randint(0, 256, (2, 1, size, size), dtype=torch.uint8)
    assert torch.allclose(features(grey)["logits"], features(grey.expand(-1, 3, -1, -1))["logits"], atol=1e-5)


def test_glyph_cnn_is_such_a_network() -> None:
    weights = load_file(Path(glyph_cnn.__file__).with_name("glyph_cnn.safetensors"))
    Classifier(len(weights["head.bias"]), 1, 16).load_state_dict(weights)


def test_figures_are_called_by_the_cards_name_and_weights_by_their_hash(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    features, moved = ImageFeatures(str(folder)), ImageFeatures(str(tmp_path / "moved"))
    assert features.name == moved.name == "patterns"
    assert features.weights_sha256 == moved.weights_sha256 == json.loads((folder / "card.json").read_text())[
        "weights_sha256"
    ]  # fmt: skip
    with pytest.raises(EvaluationError, match="leave out weights_path"):
        ImageFeatures(str(folder), weights_path=folder / "model.safetensors")


def damaged(folder: Path, tmp_path: Path, **card: Any) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    whole = json.loads((copy / "card.json").read_text()) | card
    (copy / "card.json").write_text(json.dumps({name: value for name, value in whole.items() if value != "gone"}))
    return copy


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"format": 2}, "card.json is not the card of an extractor .its format is 2"),
        ({"name": "gone"}, "'name' is missing"),
        ({"name": "a/b"}, "extractor's name is 'a/b'"),
        ({"name": "inception-v3-compat"}, "is that of another extractor"),
        ({"channels": 2}, "images of 2 channels"),
        ({"image_size": 10**9}, "1000000000 pixels a side"),
        ({"num_classes": 10**30}, "does not hold the weights that card.json describes"),
        ({"num_classes": 10**12}, "does not hold the weights that card.json describes"),
        ({"num_classes": "4"}, "num_classes is '4'"),
        ({"classes": [1]}, "its classes are not text"),
        ({"weights_sha256": "0" * 64}, "its SHA-256 is not that of the card"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_a_card_that_was_changed_is_refused_by_name(
    folder: Path, tmp_path: Path, card: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        ImageFeatures(str(damaged(folder, tmp_path, **card)))


def test_weights_that_were_changed_are_refused_and_nothing_is_run(folder: Path, tmp_path: Path) -> None:
    copy, ran = damaged(folder, tmp_path), tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> Any:
            return open, (str(ran), "w")

    weights = load_file(folder / "model.safetensors")
    whole = (copy / "model.safetensors").read_bytes()
    for content in (b"", whole[:1000], whole[:-1], pickle.dumps(Attack(), protocol=2)):
        (copy / "model.safetensors").write_bytes(content)
        with pytest.raises(EvaluationError, match=r"model\.safetensors does not hold the weights"):
            load_extractor(copy)
    for changed in ({"head.bias": torch.zeros(9)}, {"more": torch.zeros(1)}):
        save_file(weights | changed, copy / "model.safetensors")
        with pytest.raises(EvaluationError, match=r"(head.bias is \[9\], expected \[4\]|more is \[1\], expected None)"):
            load_extractor(copy)
    os.remove(copy / "model.safetensors")
    with pytest.raises(EvaluationError, match="there is no .*model.safetensors: give the folder"):
        ImageFeatures(str(copy))
    assert not ran.exists()


def test_folders_and_names_that_are_taken_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds something already"):
        check_new(folder)
    with pytest.raises(ConfigError, match="is a file"):
        check_new(folder / "card.json")
    for name in ("", "a b", "x" * 65, "glyph-cnn", "../up"):
        with pytest.raises(ConfigError, match="name"):
            check_name(name)


def test_options_and_data_that_cannot_work_are_refused() -> None:
    for options in ({"image_size": 8}, {"image_size": 65}, {"channels": 2}, {"epochs": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))} is"):
            fit_extractor(Patterns(**DATA), **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has 1 classes of 9 images: a classifier needs at least 2"):
        fit_extractor(Patterns(classes=2, per_class=9, split_fractions=(0.5, 0.0, 0.5)))


def test_held_out_images_are_few_of_every_class(numbered_counts: list[int]) -> None:
    from tests.data.conftest import numbered_images

    split = numbered_images(numbered_counts)
    mask = held_out(split, 0)
    found = [int(mask[split.labels == label].sum()) for label in range(split.num_classes)]
    assert found == [0, 1, 1, 2, 2]


@pytest.fixture
def numbered_counts() -> list[int]:
    return [2, 3, 7, 8, 30]


def test_what_limits_its_figures_is_said(folder: Path) -> None:
    _, card = load_extractor(folder)
    data: SetDataModule = Patterns(**DATA)
    assert remarks(card, data.split("test").class_names, 1) == []
    overlap = [*data.split("train").class_names[:2], *data.split("test").class_names]
    seen, grey = remarks(card, overlap, 3)
    assert "trained on 2 of the 6 classes that are evaluated as unseen" in seen
    assert "sees images in grey" in grey
