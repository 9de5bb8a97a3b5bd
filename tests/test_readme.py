"""The README's commands and code run, in order, in a folder like a user's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_vfs.cli import main
from lightning_vfs.commands import configurations

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
COMMANDS = [line.split("#")[0].strip() for line in BASH.splitlines() if line]
# Enough to run everything once: two steps of a tiny model, a few images.
SMALLER = [
    "--trainer.max_steps=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--data.num_workers=0",
    "--data.sets_per_epoch=8", "--data.eval_sets=2", "--data.batch_size=2", "--data.image_size=8",
    "--model.config.encoder.dim=16", "--model.config.encoder.depth=1", "--model.config.denoiser.dim=24",
    "--model.config.denoiser.depth=1", "--model.optimizer.warmup_steps=1",
]  # fmt: skip

FEWER = [
    "--accelerator=cpu", "--fid.num_images=4", "--fid.steps=2", "--fid.sampler=ddim", "--fid.few_shot_way=null",
    "--fid.feature_extractor=glyph-cnn", "--fid.options.kid_subset_size=2", "--fid.options.isc_splits=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """The repository's configurations beside a user's images, one of the classes called cat."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(image_folder, folder / "path" / "to" / "images")
    classes = folder / "path" / "to" / "images"
    (classes / "class00").rename(classes / "cat")
    for name in ("glyphs", "folders"):
        make_checkpoints_frequent(folder / "configs" / f"{name}.yaml")
    evaluate_with_glyph_cnn(folder / "configs" / "fid.yaml")
    return folder


def make_checkpoints_frequent(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    (saving,) = (c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("ModelCheckpoint"))
    saving["init_args"]["every_n_train_steps"] = 1
    path.write_text(yaml.safe_dump(config))


def evaluate_with_glyph_cnn(path: Path) -> None:
    """Inception's weights are a download, which tests do without."""
    config = yaml.safe_load(path.read_text())
    (fid,) = config["trainer"]["callbacks+"]
    fid["init_args"] = {"num_images": 4, "steps": 2, "feature_extractor": "glyph-cnn", "few_shot_way": None}
    path.write_text(yaml.safe_dump(config))


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 8
    assert {command.split()[0] for command in COMMANDS} == {"make", "lightning-vfs"}


def test_readme_commands_run_in_order(user_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(user_folder)
    monkeypatch.setattr(configurations, "FOLDER", user_folder / "configs")
    for line in COMMANDS:
        program, *args = shlex.split(line)
        if program == "make":
            subprocess.run(["make", "--dry-run", "-C", str(ROOT), *args], check=True, capture_output=True)
            continue
        if "ddp" in args:
            continue  # needs processes of its own: test_training_on_two_ranks
        if args[0] in ("fit", "predict"):
            args += SMALLER
            if "glyphs" in args:
                args += ["--data.image_size=16"]
            if "--ckpt_path" in args:
                args += ["--trainer.max_steps=4", "--trainer.max_epochs=-1"]
        if args[0] == "test":
            args += ["--trainer.accelerator=cpu"]
        if args[0] == "evaluate":
            args += FEWER
        if args[0] == "sample":
            args += ["--steps=2"]
        assert main(args) == 0, f"{line}\n{capsys.readouterr().err}"
    assert (user_folder / "out" / "grid.png").is_file()
    assert (user_folder / "model" / "model.safetensors").is_file()
    run_python_blocks()


def run_python_blocks() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    scope: dict = {}
    exec(code.replace("image_size=32", "image_size=8").replace("steps=50", "steps=2"), scope)
    assert scope["images"].shape == (8, 3, 8, 8)


@pytest.mark.slow  # tests/commands/test_ranks.py holds two ranks against one in every run
def test_training_on_two_ranks(user_folder: Path) -> None:
    (line,) = (line for line in COMMANDS if "ddp" in line)
    _, *args = shlex.split(line)
    done = subprocess.run(
        [sys.executable, "-m", "lightning_vfs", *args, *SMALLER, "--data.image_size=16",
         "--trainer.logger.init_args.name=ddp"],
        cwd=user_folder, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (user_folder / "runs" / "ddp" / "version_0" / "checkpoints" / "last.ckpt").is_file()
