"""The number of ranks changes nothing but the time: one process and two, by the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lightning_vfs.cli import main
from tests.commands.messages import not_ours
from tests.processes import run

STEPS = 50
# All that is drawn in training: timesteps, noise, shots, dropped contexts, dropout, a latent of the context.
FLAGS = [
    f"--trainer.max_steps={STEPS}",
    "--trainer.log_every_n_steps=1",
    "--trainer.gradient_clip_val=1.0",
    "--data.sets_per_epoch=40",
    "--model.config.sets.random_shots=true",
    "--model.config.encoder.tokenizer=per_image_mean",
    "--model.config.encoder.dropout=0.2",
    "--model.config.encoder.context=variational",
    "--model.config.encoder.context_dropout=0.2",
    "--model.config.denoiser.dropout=0.2",
]


def logged(folder: Path) -> dict[str, list[float]]:
    """Columns of a run's metrics.csv, without empty cells."""
    with (folder / "tiny" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["current_model_state"]


@pytest.fixture(scope="module")
def runs(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a run on one rank and of one on two, with the same global batch of 4 sets."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    fit = ["fit", f"--config={config_file}", *FLAGS]
    assert main([*fit, f"--trainer.logger.init_args.save_dir={one}", "--data.batch_size=4"]) == 0
    flags = [f"--trainer.logger.init_args.save_dir={two}", "--data.batch_size=2", "--trainer.devices=2"]
    done = run("-m", "lightning_vfs", *fit, *flags, "--trainer.strategy=ddp")
    assert done.returncode == 0, done.stderr
    (two / "printed.txt").write_text(done.stdout + done.stderr)
    return one, two


def test_the_loss_curve_is_the_same(runs: tuple[Path, Path]) -> None:
    one, two = (logged(folder) for folder in runs)
    assert len(one["train/loss"]) == STEPS
    assert two["train/loss"] == pytest.approx(one["train/loss"], abs=1e-5)
    assert two["val/loss"] == pytest.approx(one["val/loss"], abs=1e-5)


def test_the_weights_are_the_same(runs: tuple[Path, Path]) -> None:
    one, two = (weights(folder) for folder in runs)
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-4)


def test_both_ranks_print_lines_of_ours_only(runs: tuple[Path, Path]) -> None:
    printed = (runs[1] / "printed.txt").read_text()
    assert not_ours(printed) == []
    assert printed.count("Trained to step") == 1
