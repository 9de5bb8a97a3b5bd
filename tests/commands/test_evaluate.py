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
    """What each protocol generates, and what it compares with."""
    plan = FIDCallback(**yaml.safe_load(path.read_text())["fid"]).plan
    if path.stem == "lofgan":
        assert (plan.images_per_class, plan.shots, plan.support_pool, plan.lpips) == (128, 3, 10, True)
        assert plan.splits == ("out",) and plan.metrics == ("fid",)
    else:
        assert (plan.num_images, plan.shots, plan.sampling) == (10_000, 5, SamplingConfig(250, "ddpm"))
        assert plan.support_pool == {"fsdm": 0.5, "fsdm_published": None}[path.stem]
    assert f"\n#   lightning-vfs evaluate --config configs/eval/{path.name} --ckpt_path" in path.read_text()


@pytest.mark.parametrize("name", ["fsdm", "fsdm_published", "lofgan"])
def test_a_protocol_and_flags_over_it(name: str, trained, capsys, tmp_path: Path) -> None:
    """By its name; with landmarks, and supports that are among the real images only where it is published so."""
    few = ["--fid.metrics=[fid]", "--fid.sampler=ddim", "--fid.lpips=false", *FEW]
    if name == "lofgan":
        few += ["--fid.images_per_class=2", "--fid.support_pool=3"]
    record = tmp_path / "fid.json"
    preset = [f"--config=eval/{name}", *few, f"--fid.record={record}"]
    assert main(["evaluate", *preset, f"--ckpt_path={trained()}"]) == 0
    found = json.loads(record.read_text())
    (split,) = found["splits"].values()
    assert (found["sampling"]["sampler"], found["sampling"]["shots"]) == ("ddim", 3 if name == "lofgan" else 5)
    # 3 classes of 8 images; of one of 8, 5 are set aside for a support of 5.
    real = {"fsdm": 3, "fsdm_published": 8, "lofgan": 5}[name]
    assert set(split["real_per_class"].values()) == {real}
    if name == "lofgan":
        assert set(split["generated_per_class"].values()) == {2}
    assert all(found["figures"]["fid[glyph-cnn]/out"][beside] is not None for beside in ("floor", "copier"))
    assert main(["verify", str(record), f"--ckpt_path={trained()}", "--device=cpu"]) == 0
    assert "verified: all" in capsys.readouterr().out


def test_lpips_without_weights_says_which_file_is_missing(trained, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert main(["evaluate", "--config=eval/lofgan", f"--ckpt_path={trained()}", *FEW, "--fid.support_pool=3"]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/hub/checkpoints/vgg16-397923af.pth is not there: get https://" in said


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
