"""scripts/quickstart.py, whole way through at tiny size, where either precision is the faster one."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from PIL import Image

from lightning_vfs.evaluation import EvaluationPlan

ROOT = Path(__file__).parents[1]


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in an empty folder, with a model that is trained for two steps."""
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "scripts" / "quickstart.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    settings = yaml.safe_load((ROOT / script.CONFIG).read_text())
    settings["trainer"] |= {"max_epochs": 2, "accelerator": "cpu"}
    settings["data"]["init_args"] |= {"sets_per_epoch": 4, "batch_size": 4, "eval_sets": 4}
    settings["model"]["config"]["encoder"] |= {"dim": 16, "depth": 1}
    settings["model"]["config"]["denoiser"] |= {"dim": 24, "depth": 1}
    for callback in settings["trainer"]["callbacks"]:
        if callback["class_path"].endswith("FIDCallback"):
            callback["init_args"] |= {"num_images": 40, "num_real_images": 400, "steps": 2, "batch_size": 40}
    monkeypatch.chdir(tmp_path)
    Path("glyphs.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(script, "CONFIG", "glyphs.yaml")
    monkeypatch.setattr(script, "EvaluationPlan", functools.partial(EvaluationPlan, num_images=40, num_real_images=400))
    monkeypatch.setattr(sys, "argv", ["quickstart.py"])
    return script


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_it_ends_where_this_precision_is_faster(
    quickstart: ModuleType, precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    measured = quickstart.seconds_per_step

    def seconds_per_step(*args: object) -> float:
        assert measured(*args) > 0
        return 0.1 if args[-1] == dtype else 1.2

    monkeypatch.setattr(quickstart, "seconds_per_step", seconds_per_step)
    quickstart.main([])
    said = capsys.readouterr().out
    assert f"taking {precision}" in said
    run = Path("runs/glyphs/version_0")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["precision"], config["trainer"]["max_epochs"]) == (precision, 2)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert "few_shot_accuracy" in said and "FID, unseen characters" in said
    (shown,) = re.findall(
        r"^novel_accuracy (\S+)% \(95% interval (\S+)% to (\S+)%\): .*images (\S+)%,.*image (\S+)%\.$", said, re.M
    )
    value, low, high, real, copier = map(float, shown)
    assert low <= value <= high and real > 50 and copier == 0
    with Image.open("quickstart.png") as picture:
        assert picture.width > 500 and picture.height > 600


def test_a_precision_can_be_forced_and_a_slow_machine_trains_for_less(quickstart: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(quickstart, "seconds_per_step", lambda config, sets, dtype: 200.0)
    settings = yaml.safe_load(Path("glyphs.yaml").read_text())
    flags = quickstart.fit_to_machine(settings, "bf16-mixed")
    assert flags[:2] == ["--trainer.precision=bf16-mixed", "--trainer.max_epochs=1"]
