"""`--ckpt_path last` for every subcommand: in the working folder, and of a run's configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.commands.last_run import newest, spell_out_last

FID = ["--fid.num_images=4", "--fid.steps=1", "--fid.feature_extractor=glyph-cnn", "--accelerator=cpu"]


@pytest.fixture
def runs(trained: Callable[..., Path], config_file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Last checkpoints of two runs below the working folder, of other seeds; the second is newer."""
    monkeypatch.chdir(config_file.parent)
    older, newer = trained("--seed_everything=3"), trained("--seed_everything=4")
    for i, path in enumerate(Path("runs").rglob("*.ckpt")):
        os.utime(path, (i, i))
    for time, path in ((10**8, older), (10**9, newer)):
        os.utime(path, (time, time))
    return older.relative_to(config_file.parent), newer.relative_to(config_file.parent)


def listed(out: Path) -> dict:
    return json.loads((out / "sample.json").read_text())["sampling"]


def test_it_is_the_newest_here_or_that_of_a_configuration(
    runs: tuple[Path, Path], tmp_path: Path, image_folder: Path, capsys
) -> None:
    older, newer = runs
    sample = ["sample", "--ckpt_path", "last", f"--support={image_folder / 'class00'}", "--num_images=1", "--steps=1"]
    assert main([*sample, f"--out={tmp_path / 'newest'}"]) == 0
    assert listed(tmp_path / "newest")["ckpt_path"] == str(newer)
    # The search is that of `fit`, by the fingerprint: the other seed is passed over.
    config = older.parents[1] / "config.yaml"
    assert main([*sample, f"--config={config}", f"--out={tmp_path / 'configured'}"]) == 0
    assert Path(listed(tmp_path / "configured")["ckpt_path"]).resolve() == older.resolve()
    seed = os.environ["PL_GLOBAL_SEED"]
    spelled = spell_out_last(["--ckpt_path=last", "--config=own.yaml", "--raw"], lambda _: "")
    assert spelled == [f"--ckpt_path={newer}", "--config=own.yaml", "--raw"]
    assert os.environ["PL_GLOBAL_SEED"] == seed


def test_convert_and_evaluate_take_it(runs: tuple[Path, Path], tmp_path: Path, recwarn) -> None:
    assert main(["convert", "--ckpt_path=last", f"--out={tmp_path / 'model'}"]) == 0
    weights = torch.load(runs[1], weights_only=True)["state_dict"]
    converted = VFSDDPM.from_pretrained(str(tmp_path / "model")).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in converted.items())
    assert main(["evaluate", "--ckpt_path", "last", *FID, f"--fid.record={tmp_path / 'fid.json'}"]) == 0
    assert json.loads((tmp_path / "fid.json").read_text())["model"]["checkpoint"] == str(runs[1])


def test_subcommands_of_the_trainer_take_the_runs_configuration(
    runs: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "more.yaml").write_text("trainer: {limit_test_batches: 1}")
    assert main(["test", "--ckpt_path=last", f"--config={tmp_path / 'more.yaml'}"]) == 0
    assert f"{runs[1]}, step 2, is the newest checkpoint here" in caplog.text
    assert main(["fit", "--ckpt_path", "last", "--steps=3", "--name=resumed"]) == 1  # the name says where to look
    assert main(["fit", "--ckpt_path", "last", "--steps=3"]) == 0
    resumed = newest()[0]
    assert resumed.parents[2] == runs[1].parents[2] and resumed.parents[1].name != "version_0"
    assert torch.load(resumed, weights_only=True)["global_step"] == 3


def test_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for args in (["sample", "--out=o"], ["convert"], ["evaluate"], ["test"], ["fit"]):
        assert main([*args, "--ckpt_path=last"]) == 1
        assert "--ckpt_path last: there is no checkpoint runs/" in capsys.readouterr().err
    broken = Path("runs/a/version_0/checkpoints/last.ckpt")
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"cut")
    assert main(["convert", "--ckpt_path=last"]) == 1
    assert "these cannot be read:\n  runs/a/version_0/checkpoints/last.ckpt: " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["data", "callback", "lambda", "encoder", "sampler", "model"])
def test_a_downloaded_run_does_not_name_code(
    option: str, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run = tmp_path / "runs" / "theirs" / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_bytes(runs[1].read_bytes())
    config = yaml.safe_load((runs[1].parents[1] / "config.yaml").read_text())
    name = "their_code.Own"
    if option == "data":
        config["data"]["class_path"] = name
    elif option == "model":
        config["model_class"] = name
    elif option == "encoder":
        config["model"]["config"]["encoder"]["architecture"] = name
    else:
        path = {"callback": name, "sampler": "lightning_vfs.SampleGridCallback"}.get(
            option, "lightning.pytorch.callbacks.LambdaCallback"
        )
        config["trainer"]["callbacks"].append({"class_path": path, "init_args": {"sampler": name}})
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "their_code.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    for subcommand in ("test", "fit"):
        assert main([subcommand, "--ckpt_path=last"]) == 1
        assert "UntrustedCodeError" in capsys.readouterr().err
    assert not Path("imported").exists()
