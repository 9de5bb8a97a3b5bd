"""Which run a checkpoint is of: `last` and `last_if_any` go on from their own alone, and say what they passed over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_vfs.cli import main
from lightning_vfs.commands.evaluate import data_of_run

OTHER = {
    "seed": ["--seed_everything=1"],
    "data.seed": ["--data.seed=3"],
    "data.split_seed": ["--data.split_seed=1"],
    "data.sets_per_epoch": ["--data.sets_per_epoch=10"],
    "model.config.encoder.pool": ["--model.config.encoder.pool=patches"],
    "model.optimizer.learning_rate": ["--model.optimizer.learning_rate=0.1"],
}
"""What makes another run of it."""

SAME = [
    "--data.batch_size=4", "--data.eval_sets=4", "--trainer.precision=bf16-mixed", "--trainer.max_steps=9",
    "--trainer.accumulate_grad_batches=2", "--model.compile=true", "--trainer.log_every_n_steps=1",
]  # fmt: skip
"""What a run may be resumed with."""


@pytest.fixture
def fit(command: Callable[..., tuple[int, Any]]) -> Callable[..., tuple[int, Any]]:
    return partial(command, "fit", "--trainer.max_steps=9")


@pytest.fixture
def saved(trained: Callable[..., Path], tmp_path: Path) -> str:
    """The checkpoint of a run of the plain configuration."""
    path = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    shutil.copy(trained(), path)
    return str(path.relative_to(tmp_path))


@pytest.mark.parametrize("name", OTHER)
def test_another_run_is_passed_over_and_the_difference_named(fit, saved: str, name: str, capsys, caplog) -> None:
    assert fit(*OTHER[name], "--ckpt_path=last_if_any") == (0, None)
    assert f"there is no checkpoint of this run in {Path('runs/tiny')}" in caplog.text
    assert f"{saved}: step 2; {name} " in caplog.text and "\nA new run starts." in caplog.text
    assert fit(*OTHER[name], "--ckpt_path=last") == (1,)
    said = capsys.readouterr().err
    assert f"{saved}: step 2; {name} " in said and f"give its path: --ckpt_path {saved}; to start a new run" in said


def test_other_data_is_another_run_and_a_copy_of_the_same_is_not(
    fit, command, saved: str, image_folder: Path, tmp_path: Path, caplog
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(image_folder, copy)
    assert fit(f"--data.root={copy}", "--ckpt_path=last") == (0, saved)
    first = sorted(copy.rglob("*.png"))[0]
    first.rename(first.with_name("renamed.png"))
    assert fit(f"--data.root={copy}", "--ckpt_path=last_if_any") == (0, None)
    assert "step 2; data.files " in caplog.text
    assert command("predict", f"--data.root={copy}", "--ckpt_path=last") == (1,)
    first.with_name("renamed.png").unlink()
    assert fit(f"--data.root={copy}", "--ckpt_path=last_if_any") == (0, None)
    assert "data.images 96 -> 95" in caplog.text


def test_a_run_may_be_resumed_otherwise_computed(fit, saved: str) -> None:
    assert fit(*SAME, "--ckpt_path=last") == (0, saved)


def test_the_newest_of_ones_own_is_taken_and_newer_ones_of_others_are_named(fit, saved: str, trained, caplog) -> None:
    newer = Path("runs/tiny/version_1/checkpoints/last.ckpt")
    newer.parent.mkdir(parents=True)
    shutil.copy(trained("--seed_everything=5"), newer)
    os.utime(saved, (1, 1))
    damaged = newer.with_name("epoch=0.ckpt")
    damaged.write_bytes(b"PK")
    newer.with_name("being-written.ckpt").touch()
    assert fit("--ckpt_path=last") == (0, saved)
    assert f"Newer, but of other runs:\n  {damaged}: " in caplog.text
    assert f"{newer}: step 2; seed 5 -> 0" in caplog.text and "being-written" not in caplog.text


def test_an_older_checkpoint_is_compared_by_what_it_holds(fit, saved: str, caplog) -> None:
    contents = torch.load(saved, weights_only=True)
    del contents["fingerprint"]
    torch.save(contents, saved)
    assert fit("--ckpt_path=last") == (0, saved)
    assert "which did not store its data and seed: make sure they are the same" in caplog.text
    assert fit("--model.config.encoder.pool=patches", "--ckpt_path=last_if_any") == (0, None)
    assert "model.config.encoder.pool cls -> patches" in caplog.text


def test_a_random_seed_is_no_other_run(command, trained, tmp_path: Path) -> None:
    path = tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    shutil.copy(trained("--seed_everything=true"), path)
    assert command("fit", "--trainer.max_steps=9", "--seed_everything=true", "--ckpt_path=last_if_any")[1] is not None


def test_runs_of_one_folder_keep_their_configurations(config_file: Path, tmp_path: Path, image_folder: Path) -> None:
    shared = [f"--config={config_file}", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    next(other.rglob("*.png")).unlink()
    assert main(["fit", *shared, "--trainer.max_steps=1"]) == 0
    first = (tmp_path / "config.yaml").read_bytes()
    assert main(["fit", *shared, f"--data.root={other}"]) == 0
    assert main(["fit", *shared, "--ckpt_path=last", "--trainer.max_steps=3"]) == 0
    assert main(["validate", *shared, f"--data.root={other}", "--ckpt_path=last"]) == 0
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("checkpoints/*")}
    assert steps == {"last.ckpt": 3, "last-v1.ckpt": 2}
    assert sorted(path.name for path in tmp_path.glob("config*")) == ["config-v1.yaml", "config.yaml"]
    assert b"max_steps: 3" in (tmp_path / "config.yaml").read_bytes() and b"max_steps: 1" in first
    for name, root in (("last", image_folder), ("last-v1", other)):
        assert data_of_run(str(tmp_path / f"checkpoints/{name}.ckpt"), [])["init_args"]["root"] == str(root)


@pytest.mark.parametrize("asked", ["last", "last_if_any"])
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--trainer.max_steps=2"], "step 2 is reached, and max_steps is 2"),
        (["--trainer.max_steps=-1", "--trainer.max_epochs=0"], "0 epochs are done, and max_epochs is 0"),
    ],
)
def test_a_finished_run_says_so(command, saved: str, asked: str, flags: list[str], why: str, caplog) -> None:
    assert command("fit", *flags, f"--ckpt_path={asked}") == (0,)
    assert f"This run is finished: {why} ({saved})." in caplog.text
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == ["version_0"]
