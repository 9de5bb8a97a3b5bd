"""scripts/train_boxed_model.py, whole way through at tiny size, and the folder that it writes, in use."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.data import GlyphSets
from lightning_vfs.evaluation import EvaluationRecord, evaluate
from lightning_vfs.training import pretrained

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The script in an empty folder, with a tiny model and a tiny evaluation."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    space = runpy.run_path(str(ROOT / "scripts" / "train_boxed_model.py"), run_name="train_boxed_model")
    settings = yaml.safe_load((ROOT / "configs" / "glyphs.yaml").read_text())
    settings["trainer"] |= {"accelerator": "cpu", "callbacks": settings["trainer"]["callbacks"][2:4]}
    settings["data"]["init_args"] |= {"sets_per_epoch": 4, "batch_size": 4, "eval_sets": 4}
    settings["model"]["config"]["encoder"] |= {"dim": 16, "depth": 1}
    settings["model"]["config"]["denoiser"] |= {"dim": 24, "depth": 1}
    settings["model"]["config"]["diffusion"] |= {"timesteps": 50}
    monkeypatch.chdir(tmp_path)
    Path("glyphs.yaml").write_text(yaml.safe_dump(settings))
    scope = space["main"].__globals__
    scope["CONFIG"] = "glyphs.yaml"
    scope["guidance_of"] = lambda _: 1.5
    plan = dataclasses.replace(space["plan_of"](settings), num_images=40, num_real_images=400, splits=("out",))
    scope["plan_of"] = lambda _: plan
    return SimpleNamespace(**space, plan=plan, data=settings["data"]["init_args"])


def test_the_script_writes_a_model_that_works_by_its_name(
    script: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pretrained" / "glyphs"
    script.main(["--minutes", "1e-9", "--out", str(folder)])
    assert "Training for 1 epochs in " in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "fid.json", "samples.png", "examples"}
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert "train_boxed_model.py --epochs 1 --precision" in (folder / "README.md").read_text()
    with pytest.raises(SystemExit, match="is there already"):
        script.main(["--out", str(folder)])

    monkeypatch.setattr(pretrained, "BOXED", tmp_path / "pretrained")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    record = EvaluationRecord.read(folder / "fid.json")
    assert record.model.global_step == 1 and record.model.weights == "averaged"
    again = evaluate(VFSDDPM.from_pretrained("glyphs"), GlyphSets(**script.data), script.plan)
    assert again.figures == record.figures

    arguments = ["--support", str(folder / "examples" / "0"), "--num_images", "2", "--device", "cpu", "--steps", "2"]
    assert main(["sample", "--pretrained", "glyphs", "--out", "out", *arguments]) == 0
    assert json.loads(Path("out", "sample.json").read_text())["sampling"]["pretrained"] == "glyphs"
