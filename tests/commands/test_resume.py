"""Runs that are killed and resumed equal one that was not, and checkpoints are whole at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_vfs.cli import main
from lightning_vfs.commands.lightning import VFSCLI
from lightning_vfs.training.checkpoints import AtomicCheckpointIO
from tests import processes
from tests.commands.interruptions import differences, in_a_process, interrupted, logged

CALLBACKS = """
trainer:
  callbacks:
    - class_path: lightning_vfs.EMACallback
      init_args: {{decay: 0.9}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{save_last: true, every_n_train_steps: {every}, save_top_k: 1}}
"""


def arguments_in(folder: Path, config_file: Path) -> Callable[..., list[str]]:
    """Arguments of a run with the given name, in `<name>/version_<n>`; it writes a checkpoint at an interval.

    An epoch has 7 batches: checkpoints fall in the middle of epochs, and if two batches make a step, the last makes one
    alone.
    """

    def of(name: str, steps: int, every: int | None, *flags: str) -> list[str]:
        callbacks = folder / f"every_{every}.yaml"
        callbacks.write_text(CALLBACKS.format(every=every or "null"))
        logger = {"save_dir": folder, "name": name, "flush_logs_every_n_steps": 1}
        return [
            f"--config={config_file}", f"--config={callbacks}", f"--trainer.max_steps={steps}",
            "--trainer.log_every_n_steps=1", "--data.sets_per_epoch=14",
            *(f"--trainer.logger.init_args.{key}={value}" for key, value in logger.items()), *flags,
        ]  # fmt: skip

    return of


@pytest.fixture
def arguments(config_file: Path, tmp_path: Path) -> Callable[..., list[str]]:
    return arguments_in(tmp_path, config_file)


@pytest.fixture(scope="module")
def straight(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of 22 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    assert main(["fit", *arguments_in(folder, config_file)("straight", 22, 22)]) == 0
    return folder / "straight/version_0"


def check_killed_and_resumed(arguments, folder: Path, steps: int, killed_at: int, *flags: str) -> None:
    """A run killed in the batch of this number and resumed from its last checkpoint, of half the steps, is the same."""
    every = steps // 2
    assert main(["fit", *arguments("straight", steps, every, *flags)]) == 0
    cut = arguments("cut", steps, every, *flags)
    done = in_a_process(["fit", *cut, interrupted(folder, killed_at, "SIGKILL")])
    assert done.returncode == -signal.SIGKILL, done.stderr
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


def check_resumed(straight: Path, *runs: Path) -> None:
    """The last of the runs ends as `straight` does, and together they have logged the same, once."""
    assert differences(straight, runs[-1]) == []
    assert [row for run in runs for row in logged(run)] == logged(straight)


def test_what_is_saved_after_a_resume_lacks_no_gradients(arguments, tmp_path: Path) -> None:
    flags = ["--trainer.accumulate_grad_batches=2"]
    assert main(["fit", *arguments("straight", 10, 5, *flags)]) == 0
    cut = arguments("cut", 10, 5, *flags)
    # Step 5 ends with batch 8. Both times the run stops before batch 10: in the middle of step 6.
    for again in ([], ["--ckpt_path=last"]):
        with pytest.raises(InterruptedError):
            main(["fit", *cut, interrupted(tmp_path, 10, "raise"), *again])
    assert not (tmp_path / "cut/version_1/checkpoints/last.ckpt").exists()
    assert main(["fit", *cut, "--ckpt_path=last"]) == 0
    assert differences(tmp_path / "straight/version_0", tmp_path / "cut/version_2") == []


@pytest.mark.parametrize("every", [None, 100], ids=["at the end of epochs", "at the end"])
def test_more_steps_go_on_in_the_middle_of_the_epoch(arguments, straight: Path, tmp_path: Path, every) -> None:
    assert main(["fit", *arguments("cut", 10, every)]) == 0
    assert main(["fit", *arguments("cut", 22, 22), "--ckpt_path=last"]) == 0
    check_resumed(straight, tmp_path / "cut/version_0", tmp_path / "cut/version_1")


@pytest.mark.parametrize("every", [None, 7], ids=["after its last batch", "in its last batch"])
def test_the_end_of_an_epoch_is_followed_by_the_next(arguments, straight: Path, tmp_path: Path, every) -> None:
    with pytest.raises(InterruptedError):
        main(["fit", *arguments("cut", 22, every), interrupted(tmp_path, 14, "raise")])
    assert main(["fit", *arguments("cut", 22, 22), "--ckpt_path=last"]) == 0
    check_resumed(straight, tmp_path / "cut/version_0", tmp_path / "cut/version_1")


# -- writing ----------------------------------------------------------------------------------------------------------

KILLED_WHILE_WRITING = """
import io, os, signal, sys, torch
from lightning_vfs.training.checkpoints import AtomicCheckpointIO

save, contents = torch.save, torch.load(sys.argv[1], weights_only=True)

def half(contents, file):
    whole = io.BytesIO()
    save(contents, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    print("half is written", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = half
AtomicCheckpointIO().save_checkpoint(contents | {"global_step": 1000}, sys.argv[1])
"""


def test_a_kill_during_a_write_leaves_the_checkpoint_before(arguments, tmp_path: Path) -> None:
    run = arguments("run", 2, 1)
    assert main(["fit", *run]) == 0
    last = tmp_path / "run/version_0/checkpoints/last.ckpt"
    before = last.read_bytes()
    (tmp_path / "writer.py").write_text(KILLED_WHILE_WRITING)
    writer = processes.run(tmp_path / "writer.py", last)
    assert (writer.stdout, writer.returncode) == ("half is written\n", -signal.SIGKILL), writer.stderr
    (unfinished,) = last.parent.glob(".last.ckpt.*.tmp")
    assert 0 < unfinished.stat().st_size < len(before)
    assert last.read_bytes() == before
    assert main(["validate", *run, "--ckpt_path=last"]) == 0
    AtomicCheckpointIO().save_checkpoint({"global_step": 1000}, last)
    assert torch.load(last, weights_only=True) == {"global_step": 1000}


def test_the_command_line_writes_and_reads_by_it(config_file: Path, tmp_path: Path) -> None:
    run = VFSCLI(["validate", f"--config={config_file}", f"--trainer.logger.init_args.save_dir={tmp_path}"])
    assert isinstance(run.trainer.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1.3, 2.1])
def test_a_run_killed_at_any_moment_can_be_resumed(arguments, tmp_path: Path, seconds: float) -> None:
    last = tmp_path / "run/version_0/checkpoints/last.ckpt"
    command = [sys.executable, "-m", "lightning_vfs", "fit", *arguments("run", 100000, 1)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 600
        while not last.exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(seconds)
        run.send_signal(signal.SIGKILL)
    reached = torch.load(last, weights_only=True)["global_step"]
    assert main(["fit", *arguments("run", reached + 2, 1), "--ckpt_path=last"]) == 0
    resumed = tmp_path / "run/version_1/checkpoints/last.ckpt"
    assert torch.load(resumed, weights_only=True)["global_step"] == reached + 2
