"""lightning-vfs evaluate and compare, on checkpoints of a tiny run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_vfs.callbacks import FIDCallback
from lightning_vfs.cli import main
from lightning_vfs.core.sampling_config import SamplingConfig

pytestmark = pytest.mark.filterwarnings("ignore:glyph-cnn sees images")  # a stand-in for Inception

FEW = [
    "--accelerator=cpu", "--fid.feature_extractor=glyph-cnn", "--fid.num_images=4", "--fid.steps=2",
    "--fid.few_shot_way=null", "--fid.splits=[out]",
]  # fmt: skip
PRESETS = sorted((Path(__file__).parents[2] / "configs" / "eval").glob("*.yaml"))


def test_a_checkpoint_is_evaluated_on_the_data_of_its_run(trained, capsys) -> None:
    checkpoint = trained()
    assert main(["evaluate", f"--ckpt_path={checkpoint}", *FEW]) == 0
    printed = re.sub(r"\s", "", capsys.readouterr().out)
    record = json.loads((checkpoint.parent / "fid.json").read_text())
    figure = record["figures"]["fid[glyph-cnn]/out"]["value"]
    assert f"fid[glyph-cnn]/out│{figure:.6g}"[:24] in printed
    assert record["model"]["weights"] == "averaged"
    assert record["model"]["checkpoint"] == str(checkpoint)
    assert (record["model"]["averaging_decay"], record["model"]["averaging_warmup"]) == (0.9, True)

    raw = checkpoint.parent / "raw.json"
    assert main(["evaluate", f"--ckpt_path={checkpoint}", "--raw", *FEW, f"--fid.record={raw}"]) == 0
    record = json.loads(raw.read_text())
    assert record["model"]["weights"] == "raw"
    assert record["figures"]["fid[glyph-cnn]/out"]["value"] != figure


def test_other_data_and_a_pretrained_folder(trained, image_folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["convert", f"--ckpt_path={trained()}", f"--out={tmp_path / 'model'}"]) == 0
    pretrained = ["evaluate", f"--pretrained={tmp_path / 'model'}", *FEW]
    assert main(pretrained) == 1
    assert "A pretrained folder does not say what data to evaluate on: give --data" in capsys.readouterr().err
    data = ["--data=FolderSets", f"--data.root={image_folder}", "--data.image_size=8"]
    assert main([*pretrained, *data]) == 0
    assert (tmp_path / "model" / "fid.json").is_file()
    assert main([*pretrained, *data, "--data.set_size=4"]) == 1
    assert "SetSizeMismatchError" in capsys.readouterr().err


def test_what_is_evaluated_must_be_said_and_known(trained, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", *FEW]) == 1
    assert "Give either --ckpt_path FILE or --pretrained FOLDER" in capsys.readouterr().err
    shutil.copy(trained(), tmp_path / "lonely.ckpt")
    assert main(["evaluate", f"--ckpt_path={tmp_path / 'lonely.ckpt'}", *FEW]) == 1
    assert "There is no configuration of the run" in capsys.readouterr().err


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_hold_options_of_the_callback(path: Path) -> None:
    plan = FIDCallback(**yaml.safe_load(path.read_text())["fid"]).plan
    assert (plan.num_images, plan.shots, plan.sampling) == (10_000, 5, SamplingConfig(250, "ddpm"))


def test_a_preset_and_flags_over_it(trained, capsys) -> None:
    preset = [f"--config={PRESETS[0]}", "--fid.metrics=[fid]", "--fid.sampler=ddim"]
    assert main(["evaluate", *preset, f"--ckpt_path={trained()}", *FEW]) == 0
    record = json.loads((trained().parent / "fid.json").read_text())
    assert (record["sampling"]["sampler"], record["sampling"]["shots"]) == ("ddim", 5)


def test_records_are_compared(trained, tmp_path: Path, capsys) -> None:
    for name, options in (("a", []), ("b", ["--fid.batch_size=1"]), ("c", ["--fid.steps=3"])):
        record = f"--fid.record={tmp_path / name}.json"
        assert main(["evaluate", f"--ckpt_path={trained()}", *FEW, *options, record]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    said = capsys.readouterr().out
    assert "fid[glyph-cnn]/out" in said and "\ncomparable" in said and "batch_size: 250 against 1" in said
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 1
    assert "not comparable:\n  steps: 2 against 3" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "lost.json")]) == 1
    assert "EvaluationError" in capsys.readouterr().err
