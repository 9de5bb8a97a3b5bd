"""lightning-vfs extractor fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_vfs.cli import main
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.evaluation import EvaluationPlan, evaluate
from lightning_vfs.metrics import extractor_folder
from lightning_vfs.metrics.extractor_training import fit_extractor
from tests.callbacks.conftest import Painter, Patterns


def test_an_extractor_is_trained_from_the_command_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--data.root={image_folder}", "--data.image_size=8", "--data.split_fractions=[0.5,0.25,0.25]"]
    flags = ["--data=FolderSets", *data, f"--out={tmp_path / 'mine'}", "--epochs=2", "--channels=1"]
    assert main(["extractor", "fit", *flags]) == 0
    assert f"Use it with: --fid.feature_extractor {tmp_path / 'mine'}" in capsys.readouterr().out
    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert (card["name"], card["channels"], card["image_size"], card["num_classes"]) == ("mine", 1, 16, 6)
    assert card["data"]["class"] == "lightning_vfs.data.folders.FolderSets" and card["data"]["images"] == 96
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == [
        "README.md",
        "card.json",
        "model.safetensors",
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine"]
    assert main(["extractor", "fit", *flags]) == 1
    assert "mine holds something already" in capsys.readouterr().err


def test_other_words_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extractor", "train"]) == main(["extractor"]) == 2
    said = capsys.readouterr().err
    assert "'train' is no command of it" in said and "a command is missing" in said
    assert main(["extractor", "fit", "--data=GlyphSets"]) == 2
    assert "Missing: --out" in capsys.readouterr().err
    assert main(["extractor", "--help.all"]) == 0
    assert "--image_size" in capsys.readouterr().out


def test_figures_in_its_features_have_its_name_and_its_weights(tmp_path: Path) -> None:
    classifier, card = fit_extractor(Patterns(classes=20), epochs=1)
    extractor_folder.save_extractor(classifier, {"name": "patterns", **card}, tmp_path / "mine")
    plan = EvaluationPlan(
        num_images=8, splits=["out"], feature_extractor=str(tmp_path / "mine"), few_shot_way=2,
        sampling=SamplingConfig(2),
    )  # fmt: skip
    record = evaluate(Painter(), Patterns(classes=20), plan)
    assert {"fid[patterns]/out", "few_shot_accuracy[patterns]/out", "novel_accuracy[patterns]/out"} <= set(
        record.figures
    )
    assert record.features.extractor == "patterns"
    assert record.features.weights_sha256 == json.loads((tmp_path / "mine" / "card.json").read_text())["weights_sha256"]
    assert not record.notes or "trained on" not in " ".join(record.notes)
    with pytest.warns(UserWarning, match="patterns was trained on 9 of the 9 classes that are evaluated as unseen"):
        evaluate(Painter(), Patterns(classes=20, split_fractions=(0.1, 0.45, 0.45), split_seed=0), _all_known(plan))


def _all_known(plan: EvaluationPlan) -> EvaluationPlan:
    card = Path(str(plan.feature_extractor)) / "card.json"
    known = json.loads(card.read_text())
    known["classes"] = [f"pattern {i}" for i in range(20)]
    card.write_text(json.dumps(known))
    return plan
