"""Workers that fetch batches, by every way in which Python starts a process on some system or version."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from lightning_vfs.cli import main
from tests.commands.interruptions import differences, interrupted
from tests.processes import run

SCRIPT = Path(__file__).with_name("start_method.py")
METHODS = multiprocessing.get_all_start_methods()
FAST = {"fork": 2, "spawn": 1}
"""Numbers of workers in every run of the tests."""


def arguments(config_file: Path, folder: Path, num_workers: int) -> list[str]:
    to = [f"--trainer.logger.init_args.save_dir={folder}", "--trainer.max_steps=7", "--trainer.limit_val_batches=0"]
    return ["fit", f"--config={config_file}", *to, f"--data.num_workers={num_workers}"]


def fit(method: str, *arguments: str) -> CompletedProcess[str]:
    return run(SCRIPT, method, *arguments)


@pytest.fixture(scope="module")
def without_workers(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without_workers")
    assert main(arguments(config_file, folder, 0)) == 0
    return folder


@pytest.mark.parametrize(
    ("method", "num_workers"),
    # A worker that is not forked imports everything again, in 10 s; two forked ones are in every run.
    [
        pytest.param(method, number, marks=() if FAST.get(method) == number else pytest.mark.slow)
        for method in METHODS
        for number in (1, 2)
    ],
)
def test_a_run_is_the_same_to_the_bit(
    config_file: Path, without_workers: Path, tmp_path: Path, method: str, num_workers: int
) -> None:
    done = fit(method, *arguments(config_file, tmp_path, num_workers))
    assert done.returncode == 0, done.stderr
    assert differences(without_workers / "tiny/version_0", tmp_path / "tiny/version_0") == []


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_signal_to_all_processes_saves_and_ends_the_run(config_file: Path, tmp_path: Path, method: str) -> None:
    done = fit(method, *arguments(config_file, tmp_path, 2), interrupted(tmp_path, 5, "SIGTERM", to_group=True))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: step 6 is saved" in done.stderr and "Traceback" not in done.stderr
