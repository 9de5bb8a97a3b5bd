"""`--ckpt_path last`: where it looks, and what it takes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_vfs.commands.last_checkpoint import SameCheckpoint
from lightning_vfs.commands.lightning import VFSCLI
from lightning_vfs.core import CheckpointError

LOGGER = "--trainer.logger=lightning.pytorch.loggers"


@pytest.fixture
def command(command: Callable[..., tuple[int, Any]]) -> Callable[..., tuple[int, Any]]:
    """For runs that are not finished."""
    return lambda subcommand, *flags: command(subcommand, "--trainer.max_steps=9", *flags)


@pytest.fixture
def fit(command: Callable[..., tuple[int, Any]]) -> Callable[..., tuple[int, Any]]:
    return partial(command, "fit")


@pytest.fixture
def put(trained: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Copies a checkpoint to a path in the test's folder, with a time of writing."""

    def copy(path: str, written_at: float) -> str:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained(), tmp_path / path)
        os.utime(tmp_path / path, (written_at, written_at))
        return path

    return copy


def test_the_newest_of_all_runs_is_taken(fit, put, caplog) -> None:
    put("runs/tiny/version_0/checkpoints/last.ckpt", 1)
    newest = put("runs/tiny/version_1/checkpoints/last.ckpt", 9)
    put("runs/tiny/version_2/checkpoints/epoch=0-step=2.ckpt", 5)
    put("runs/other/version_0/checkpoints/last.ckpt", 20)
    put("runs/tiny/version_1/checkpoints/.last.ckpt.tmp", 20)
    assert fit("--ckpt_path=last") == fit("--ckpt_path", "last_if_any") == (0, newest)
    assert f"--ckpt_path last: {newest} is the newest checkpoint" in caplog.text


def test_a_later_one_by_another_name_is_taken_and_of_the_same_time_the_last(fit, put) -> None:
    last = put("runs/tiny/version_0/checkpoints/last.ckpt", 1)
    put("runs/tiny/version_0/checkpoints/epoch=0-step=1.ckpt", 1)
    assert fit("--ckpt_path=last") == (0, last)
    later = put("runs/tiny/version_1/checkpoints/epoch=1-step=9.ckpt", 2)
    assert fit("--ckpt_path=last") == (0, later)


def test_weights_alone_are_not_gone_on_from(fit, put) -> None:
    whole = put("runs/tiny/version_0/checkpoints/last.ckpt", 1)
    weights = put("runs/tiny/version_0/checkpoints/weights.ckpt", 2)
    contents = torch.load(weights, weights_only=True)
    del contents["optimizer_states"]
    torch.save(contents, weights)
    assert fit("--ckpt_path=last") == (0, whole)


def test_the_checkpoints_hyper_parameters_become_the_models(fit, put, capsys) -> None:
    path = put("runs/tiny/version_0/checkpoints/last.ckpt", 1)
    assert fit(f"--ckpt_path={path}", "--model.config.encoder.dim=32") == (1,)
    assert "--model.config.encoder.dim is 32, but the checkpoint was trained with 16" in capsys.readouterr().err
    assert fit(f"--ckpt_path={path}", "--data.set_size=4") == (1,)
    assert "SetSizeMismatchError" in capsys.readouterr().err


def test_where_there_is_none_last_is_an_error_and_last_if_any_begins_afresh(fit, capsys, caplog) -> None:
    assert fit("--ckpt_path=last") == (1,)
    said = capsys.readouterr().err
    assert "CheckpointError: --ckpt_path last: there is no checkpoint runs/tiny/*/checkpoints/*.ckpt" in said
    assert "leave --ckpt_path out, or give last_if_any" in said
    assert fit("--ckpt_path=last_if_any") == (0, None)
    assert "*.ckpt; a new run starts." in caplog.text


def test_evaluation_takes_last_and_refuses_last_if_any(command, put, capsys) -> None:
    newest = put("runs/tiny/version_0/checkpoints/last.ckpt", 1)
    for subcommand in ("validate", "test", "predict"):
        assert command(subcommand, "--ckpt_path=last") == (0, newest)
    assert command("test", "--ckpt_path=last_if_any") == (1,)
    assert "last_if_any is for fit; test takes a path or last" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        ([], "runs/tiny/any/checkpoints/a.ckpt"),
        (["--trainer.logger.init_args.version=3"], "runs/tiny/version_3/checkpoints/a.ckpt"),
        (["--trainer.logger.init_args.name=null"], "runs/any/checkpoints/a.ckpt"),
        ([f"{LOGGER}.TensorBoardLogger", "--trainer.logger.save_dir=tb"], "tb/tiny/any/checkpoints/a.ckpt"),
        ([f"{LOGGER}.WandbLogger", "--trainer.logger.project=p"], "runs/p/any/checkpoints/a.ckpt"),
        (["--trainer.logger=true"], "lightning_logs/any/checkpoints/a.ckpt"),
        (["--trainer.logger=null"], "lightning_logs/any/checkpoints/a.ckpt"),
        (["--trainer.logger=false", "--trainer.default_root_dir=root"], "root/checkpoints/a.ckpt"),
        (["--trainer.callbacks.dirpath=mine"], "mine/a.ckpt"),
        (["--trainer.callbacks=[]", "--trainer.enable_checkpointing=false"], "checkpoints/a.ckpt"),
    ],
)
def test_it_looks_where_the_run_would_write(fit, put, flags: list[str], path: str, monkeypatch) -> None:
    # Without the package, and no run is to be made.
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    put("elsewhere/any/checkpoints/last.ckpt", 20)
    put(path, 1)
    assert fit(*flags, "--ckpt_path=last") == (0, path)


def test_a_logger_whose_folders_are_not_known_is_an_error(fit, capsys) -> None:
    assert fit(f"{LOGGER}.MLFlowLogger", "--ckpt_path=last") == (1,)
    said = capsys.readouterr().err
    assert "does not know the folders of lightning.pytorch.loggers.MLFlowLogger" in said and "dirpath" in said


def test_other_processes_are_started_with_what_was_found(command, put, monkeypatch) -> None:
    """They look later, when the first may have written a newer one."""
    newest = put("runs/tiny/version_0/checkpoints/last.ckpt", 1)
    started_with: list[list[str]] = []
    monkeypatch.setattr(VFSCLI, "after_instantiate_classes", lambda cli: started_with.append(sys.argv))
    command("fit", "--ckpt_path=last")
    assert started_with[0][-1] == f"--ckpt_path={newest}"


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_read_different_checkpoints_are_told_so(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ["a of step 5", "a of step 5"]
    monkeypatch.setattr("lightning_vfs.commands.last_checkpoint.gather_objects", lambda mine: read)
    SameCheckpoint(read[rank]).setup(None, None, "fit")
    read[1] = "a of step 4"
    with pytest.raises(CheckpointError, match="rank 0 a of step 5, rank 1 a of step 4"):
        SameCheckpoint(read[rank]).setup(None, None, "fit")
