"""A run that is asked to end writes a checkpoint first, and resumes from it exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_vfs.cli import main
from tests.commands.interruptions import differences, in_a_process, interrupted, logged

STEPS = 12
# Two batches make a step, and the last of an epoch's 7 makes one alone: step 4 ends with batch 6, step 5 with batch 8.
FLAGS = [
    f"--trainer.max_steps={STEPS}", "--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=1",
    "--data.sets_per_epoch=14", "--trainer.logger.init_args.flush_logs_every_n_steps=1000",
    "--trainer.callbacks.init_args.every_n_train_steps=12", "--trainer.callbacks.init_args.save_on_exception=true",
]  # fmt: skip
SLURM = {
    "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "train",
}  # fmt: skip


@pytest.fixture
def run(config_file: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a run in `<name>/version_<n>`."""
    logger = f"--trainer.logger.init_args.save_dir={tmp_path}"
    return lambda name, *flags: [
        "fit", f"--config={config_file}", logger, f"--trainer.logger.init_args.name={name}", *FLAGS, *flags,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def straight(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    assert main(["fit", f"--config={config_file}", f"--trainer.logger.init_args.save_dir={folder}", *FLAGS]) == 0
    return folder / "tiny/version_0"


def step_of(run: Path) -> int:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


def check_equal(straight: Path, *runs: Path) -> None:
    """The last of the runs ends as the uninterrupted one does, and together they have logged the same, once."""
    assert differences(straight, runs[-1]) == []
    assert [row for run in runs for row in logged(run)] == logged(straight)


def interrupt(arguments: list[str], status: int) -> None:
    """Run in this process, to the end by an exit with this status."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == status
    assert {signum: signal.getsignal(signum) for signum in before} == before


@pytest.mark.parametrize(
    ("where", "at", "step"),
    [("batch", 8, 5), ("batch", 7, 5), ("batch", 6, 4), ("validation", 0, 5)],
    ids=["before a step", "in the middle of accumulation", "before a validation", "during a validation"],
)
def test_sigterm(run, straight: Path, tmp_path: Path, where: str, at: int, step: int, caplog) -> None:
    interrupt([*run("cut"), interrupted(tmp_path, at, "SIGTERM", where=where)], 128 + signal.SIGTERM)
    cut, resumed = tmp_path / "cut/version_0", tmp_path / "cut/version_1"
    assert f"SIGTERM: step {step} is saved in {cut / 'checkpoints/last.ckpt'}" in caplog.text
    saved = torch.load(cut / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == saved["callbacks"]["EMACallback"]["latest_update_step"] == step
    assert main([*run("cut"), "--ckpt_path=last"]) == 0
    check_equal(straight, cut, resumed)


def test_ctrl_c(run, tmp_path: Path, caplog, capfd) -> None:
    interrupt([*run("cut"), interrupted(tmp_path, 7, "SIGINT")], 128 + signal.SIGINT)
    assert "Ctrl-C: the run is saved and ends after this step; again, and it stops at once." in capfd.readouterr().err
    last = tmp_path / "cut/version_0/checkpoints/last.ckpt"
    assert f"Ctrl-C: step 5 is saved in {last}, and the run ends. Resume with the same command and" in caplog.text
    assert step_of(tmp_path / "cut/version_0") == 5


def test_the_process_exits_with_143(run, tmp_path: Path) -> None:
    done = in_a_process([*run("cut"), interrupted(tmp_path, 7, "SIGTERM")])
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    assert step_of(tmp_path / "cut/version_0") == 5


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What SLURM's scontrol has been called with, in a job of one task; it is refused where `refuse` exists."""
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "scontrol"
    refusal = f"if test -e {tmp_path}/refuse; then echo no >&2; exit 1; fi"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n{refusal}\n')
    program.chmod(0o755)
    return (tmp_path / "called").read_text


def test_slurm_has_the_job_requeued(run, straight: Path, tmp_path: Path, scontrol: Callable[[], str], caplog) -> None:
    interrupt([*run("cut"), interrupted(tmp_path, 7, "SIGUSR1"), "--ckpt_path=last_if_any"], 0)
    assert scontrol() == "requeue 4242\n"
    assert "SIGUSR1: step 5 is saved" in caplog.text
    assert main([*run("cut"), "--ckpt_path=last_if_any"]) == 0
    check_equal(straight, tmp_path / "cut/version_0", tmp_path / "cut/version_1")
    assert not list(tmp_path.rglob("hpc_ckpt*")) and not list(Path().glob("hpc_ckpt*"))


def test_slurm_requeues_the_task_of_an_array_or_refuses(run, tmp_path: Path, scontrol, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4200")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    (tmp_path / "refuse").touch()
    with pytest.warns(UserWarning, match="`scontrol requeue 4200_3` failed: no. Submit it again"):
        interrupt([*run("cut"), interrupted(tmp_path, 7, "SIGUSR1")], 128 + signal.SIGUSR1)
    assert scontrol() == "requeue 4200_3\n"
    assert step_of(tmp_path / "cut/version_0") == 5


def test_slurm_ends_a_job_by_sigterm_without_requeueing_it(run, tmp_path: Path, scontrol) -> None:
    interrupt([*run("cut"), interrupted(tmp_path, 7, "SIGTERM")], 128 + signal.SIGTERM)
    assert not (tmp_path / "called").exists()


def test_without_a_model_checkpoint_it_is_in_the_trainers_root(run, tmp_path: Path) -> None:
    flags = ["--trainer.callbacks=[]", "--trainer.enable_checkpointing=false", f"--trainer.default_root_dir={tmp_path}"]
    own = [f"--config={tmp_path / 'own.yaml'}", *flags[1:]]
    (tmp_path / "own.yaml").write_text("trainer: {callbacks: [{class_path: lightning_vfs.PreemptionCheckpoint}]}")
    arguments = [flag for flag in run("cut", *own) if "every_n_train_steps" not in flag]
    interrupt([*arguments, interrupted(tmp_path, 7, "SIGTERM")], 128 + signal.SIGTERM)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_a_checkpoint_saved_within_a_step_resumes_from_the_whole_one_before(
    run, straight: Path, tmp_path: Path
) -> None:
    """Gradients of half a step are in no checkpoint: its batches are trained on again."""
    validating = [
        "--trainer.val_check_interval=3", "--trainer.callbacks.init_args.every_n_train_steps=null",
        "--trainer.callbacks.init_args.save_top_k=1",
    ]  # fmt: skip
    assert main(run("straight", *validating)) == 0
    done = in_a_process([*run("cut", *validating), interrupted(tmp_path, 4, "SIGKILL")])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert step_of(tmp_path / "cut/version_0") == 1
    assert main([*run("cut", *validating), "--ckpt_path=last"]) == 0
    assert differences(tmp_path / "straight/version_0", tmp_path / "cut/version_1") == []


# -- several processes ------------------------------------------------------------------------------------------------

DDP = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.sets_per_epoch=28"]


@pytest.mark.slow
def test_one_of_two_ranks_is_told(run, tmp_path: Path) -> None:
    assert in_a_process(run("straight", *DDP)).returncode == 0
    for rank in (0, 1):
        name = f"cut{rank}"
        done = in_a_process([*run(name, *DDP), interrupted(tmp_path, 7, "SIGTERM", rank=rank)])
        assert done.returncode == 143, done.stderr
        assert done.stderr.count("SIGTERM: step 5 is saved") == 1
        assert "Forcefully" not in done.stderr and "Traceback" not in done.stderr
        resumed = in_a_process([*run(name, *DDP), "--ckpt_path=last"])
        assert resumed.returncode == 0, resumed.stderr
        check_equal(tmp_path / "straight/version_0", tmp_path / name / "version_0", tmp_path / name / "version_1")


@pytest.mark.slow
def test_all_processes_of_the_run_are_told(run, tmp_path: Path) -> None:
    """As SLURM does, and `docker stop`: the workers that fetch batches hear the signal too."""
    workers = "--data.num_workers=2"
    done = in_a_process([*run("cut", *DDP, workers), interrupted(tmp_path, 7, "SIGTERM", to_group=True)])
    assert done.returncode == 143, done.stderr
    assert step_of(tmp_path / "cut/version_0") == 5
