"""Runs that are killed and resumed equal one that was not, and checkpoints are whole at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_vfs.cli import main
from lightning_vfs.commands.lightning import VFSCLI
from lightning_vfs.interop.checkpoints import AtomicCheckpointIO
from tests.commands.interruptions import FIT, REPOSITORY, differences, interrupted, logged

# 7 batches an epoch: checkpoints fall in the middle of epochs, and an epoch's last step accumulates one batch of two.
BASE = ["--data.sets_per_epoch=14", "--trainer.log_every_n_steps=1", "--trainer.logger.init_args.flush_logs_every_n_steps=1"]


@pytest.fixture
def arguments(config_file: Path, tmp_path: Path):
    """Arguments of a run with the given name; its folders are `<name>/version_<n>`."""

    def of(name: str, steps: int, every: int, *flags: str) -> list[str]:
        (tmp_path / "steps.yaml").write_text(
            "trainer:\n  callbacks:\n"
            "    - class_path: lightning.pytorch.callbacks.EMAWeightAveraging\n"
            "      init_args: {decay: 0.9, use_buffers: false}\n"
            "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
            f"      init_args: {{save_last: true, every_n_train_steps: {every}, save_top_k: 0}}\n"
        )
        logger = [f"--trainer.logger.init_args.save_dir={tmp_path}", f"--trainer.logger.init_args.name={name}"]
        files = [f"--config={config_file}", f"--config={tmp_path / 'steps.yaml'}"]
        return [*files, *BASE, *logger, f"--trainer.max_steps={steps}", *flags]

    return of


def kill_when_held(command: list[str], folder: Path) -> None:
    """Start the command, and kill it when it says that it holds."""
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 240
        while not (folder / "held").exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        assert (folder / "held").exists(), run.communicate()[1]
    assert run.returncode == -signal.SIGKILL


def check_killed_and_resumed(arguments, folder: Path, steps: int, killed_at: int, *flags: str) -> None:
    """A run killed in the batch of this number and resumed from its last checkpoint, of half the steps, is the same."""
    every = steps // 2
    assert main(["fit", *arguments("straight", steps, every, *flags)]) == 0
    cut = arguments("cut", steps, every, *flags)
    kill_when_held([*FIT, *cut, interrupted(folder, killed_at, "hold")], folder)
    assert main(["fit", *cut, "--ckpt_path=last"]) == 0
    straight, killed, resumed = folder / "straight/version_0", folder / "cut/version_0", folder / "cut/version_1"
    assert torch.load(killed / "checkpoints/last.ckpt", weights_only=True)["global_step"] == every
    assert torch.load(straight / "checkpoints/last.ckpt", weights_only=True)["global_step"] == steps
    assert differences(straight, resumed) == []
    assert logged(resumed) == logged(straight, from_step=every)
    assert len([row for row in logged(resumed) if "train/loss" in row]) == steps - every


def test_a_killed_run_goes_on_as_if_nothing_had_been(arguments, tmp_path: Path) -> None:
    flags = ["--trainer.accumulate_grad_batches=2", "--data.num_workers=2"]
    check_killed_and_resumed(arguments, tmp_path, 20, 22, *flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--data.num_workers=2"],
        ["--trainer.accumulate_grad_batches=2"],
        ["--model.config.encoder.dropout=0.3", "--model.config.denoiser.dropout=0.2"],
        ["--trainer.val_check_interval=3"],
        ["--trainer.accumulate_grad_batches=2", "--data.num_workers=2", "--trainer.val_check_interval=2"],
        ["--model.config.diffusion.timestep_sampling=loss_second_moment", "--model.config.diffusion.timesteps=4"],
    ],
    ids=["plain", "workers", "accumulation", "dropout", "validation", "all", "loss_second_moment"],
)
def test_100_steps_are_50_and_50(arguments, tmp_path: Path, flags: list[str]) -> None:
    accumulates = any("accumulate" in flag for flag in flags)
    check_killed_and_resumed(arguments, tmp_path, 100, 96 if accumulates else 53, *flags)


# -- where Lightning alone would not be exact -------------------------------------------------------------------------


def check_resumed(folder: Path, runs: list[str]) -> None:
    """The last of the runs ends as `straight` does, and together they have logged the same, once."""
    straight = folder / "straight/version_0"
    assert differences(straight, folder / runs[-1]) == []
    assert [row for run in runs for row in logged(folder / run)] == logged(straight)


def test_what_is_saved_after_a_resume_lacks_no_gradients(arguments, tmp_path: Path) -> None:
    flags = ["--trainer.accumulate_grad_batches=2"]
    assert main(["fit", *arguments("straight", 20, 5, *flags)]) == 0
    cut = arguments("cut", 20, 5, *flags)
    # Step 5 is the first of epoch 1, batch 9 its third: half of step 6. Killed there, and again at the same batch.
    for again in ([], ["--ckpt_path=last"]):
        with pytest.raises(InterruptedError):
            main(["fit", *cut, interrupted(tmp_path, 10, "raise"), *again])
    assert not (tmp_path / "cut/version_1/checkpoints/last.ckpt").exists()
    assert main(["fit", *cut, "--ckpt_path=last"]) == 0
    assert differences(tmp_path / "straight/version_0", tmp_path / "cut/version_2") == []


def test_more_steps_go_on_in_the_middle_of_the_epoch(arguments, tmp_path: Path) -> None:
    """Without every_n_train_steps, ModelCheckpoint saves at the end of the epoch that max_steps cuts short."""
    assert main(["fit", *arguments("straight", 20, 20)]) == 0
    arguments("cut", 10, 0)
    by_epoch = tmp_path / "steps.yaml"
    by_epoch.write_text(by_epoch.read_text().replace("every_n_train_steps: 0, save_top_k: 0", "save_top_k: 1"))
    cut = arguments("cut", 10, 20)
    by_epoch = [f"--trainer.logger.init_args.name=cut"]
    assert main(["fit", *cut]) == 0
    assert main(["fit", *arguments("cut", 20, 20), "--ckpt_path=last"]) == 0
    check_resumed(tmp_path, ["cut/version_0", "cut/version_1"])
