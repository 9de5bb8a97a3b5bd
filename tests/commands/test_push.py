"""The subcommand push: which record goes with which weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.evaluation.model import model_record
from lightning_vfs.evaluation.record import EvaluationRecord
from tests.evaluation.test_record import PLAIN
from tests.hub_server import Hub


def test_push_takes_the_record_of_the_checkpoint(
    hub: Hub, trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = shutil.copy(trained(), tmp_path / "last.ckpt")
    arguments = ["push", "--repo_id", "user/model", "--ckpt_path", str(checkpoint)]
    other = tmp_path / "fid.json"
    EvaluationRecord.from_dict(PLAIN).write(other)
    assert main(arguments) == 0
    assert "without figures" in capsys.readouterr().out
    assert main([*arguments, "--record", str(other)]) == 1
    assert "is the evaluation of averaged weights of step 1000, but" in capsys.readouterr().err
    own = asdict(model_record(VFSDDPM.load_from_checkpoint(checkpoint), checkpoint))
    EvaluationRecord.from_dict(PLAIN | {"model": own}).write(tmp_path / "fid-v1.json")
    assert main(arguments) == 0
    assert "with the figures of its evaluation" in capsys.readouterr().out
    assert "| `fid/out` | 4.5 ± 0.12 | 0.5 | 0.25 | 0.75 | 1.5 |" in hub.files("user/model")["README.md"].decode()
    assert main([*arguments, "--raw"]) == 0
    assert "without figures" in capsys.readouterr().out


def test_push_of_a_folder_takes_the_record_in_it(hub: Hub, tiny_model, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    EvaluationRecord.from_dict(PLAIN).write(tmp_path / "fid.json")
    assert main(["push", "--repo_id", "user/model", "--pretrained", str(tmp_path), "--license", "mit"]) == 0
    assert "copies its support" in hub.files("user/model")["README.md"].decode()
