"""A tiny configuration file, and checkpoints that were trained with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_vfs.cli import main

TINY = """
seed_everything: 0
trainer:
  accelerator: cpu
  max_steps: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {{save_dir: {runs}, name: tiny}}
  callbacks:
    - class_path: lightning_vfs.EMACallback
      init_args: {{decay: 0.9}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{save_last: true, every_n_train_steps: 1, save_top_k: 0}}
data:
  class_path: lightning_vfs.data.FolderSets
  init_args:
    root: {images}
    image_size: 8
    batch_size: 2
    sets_per_epoch: 8
    eval_sets: 2
    split_fractions: [0.5, 0.25, 0.25]
model:
  config:
    encoder: {{dim: 16, depth: 1, heads: 2, dim_head: 8, patch_size: 2}}
    denoiser: {{dim: 16, depth: 1, heads: 2, patch_size: 4}}
    diffusion: {{timesteps: 20}}
"""


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY.format(runs=folder / "runs", images=image_folder))
    return folder / "tiny.yaml"


@pytest.fixture(scope="session")
def trained(config_file: Path) -> Callable[..., Path]:
    """Trains with the given flags, once for each, and gives the last checkpoint."""
    made: dict[tuple[str, ...], Path] = {}

    def train(*flags: str) -> Path:
        if flags not in made:
            name = f"--trainer.logger.init_args.name=run{len(made)}"
            assert main(["fit", f"--config={config_file}", name, *flags]) == 0
            made[flags] = config_file.parent / "runs" / f"run{len(made)}" / "version_0" / "checkpoints" / "last.ckpt"
        return made[flags]

    return train


@pytest.fixture
def command(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any]]:
    """Runs a subcommand in the test's folder up to where its trainer would start; gives exit status and checkpoint."""
    monkeypatch.chdir(tmp_path)

    def run(subcommand: str, *flags: str) -> tuple[int, Any]:
        from lightning_vfs.commands.lightning import VFSCLI

        taken: list[Any] = []
        monkeypatch.setattr(VFSCLI, "_run_subcommand", lambda cli, name: taken.append(cli.config[name]["ckpt_path"]))
        flags = (f"--config={config_file}", "--trainer.logger.init_args.save_dir=runs", *flags)
        return main([subcommand, *flags]), *taken

    return run
