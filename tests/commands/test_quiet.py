"""In a normal run nothing of a library reaches the user unless they must act on it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vfs.commands.quiet import LOGGED, quiet
from tests.commands.messages import not_ours
from tests.processes import REPOSITORY

TINY = [
    "--trainer.accelerator=cpu", "--data.sets_per_epoch=8", "--data.eval_sets=2", "--data.batch_size=2",
    "--data.image_size=8", "--data.num_workers=0", "--model.config.encoder.dim=16", "--model.config.encoder.depth=1",
    "--model.config.denoiser.dim=24", "--model.config.denoiser.depth=1", "--model.optimizer.warmup_steps=1",
]  # fmt: skip
FID = ["--fid.feature_extractor=glyph-cnn", "--fid.num_images=4", "--fid.steps=2", "--fid.few_shot_way=null"]
CHECKPOINT = "runs/folders/version_0/checkpoints/last.ckpt"


def commands(images: Path) -> dict[str, list[str]]:
    """A user's commands, with the configuration as it is shipped; each goes on from those before."""
    folders = [f"--config={REPOSITORY / 'configs/folders.yaml'}", f"--data.root={images}", *TINY]
    checkpoint = f"--ckpt_path={CHECKPOINT}"
    other = ["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.logger=true", "--trainer.callbacks=[]"]
    return {
        "fit": ["fit", *folders, "--trainer.max_steps=6", "--trainer.log_every_n_steps=2"],
        "resume": ["fit", *folders, "--trainer.max_steps=8", "--ckpt_path=last"],
        # Another logger, no callback, a precision and workers: what is said of them has its own texts.
        "other": [
            "fit", *folders, *other, "--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=null",
            "--data.num_workers=1",
        ],
        "validate": ["validate", *folders, checkpoint],
        "test": ["test", *folders, checkpoint],
        "predict": ["predict", *folders, checkpoint],
        "evaluate": ["evaluate", checkpoint, "--accelerator=cpu", *FID],
        "sample": ["sample", checkpoint, "--support=support", "--num_images=2", "--out=out", "--steps=2"],
        "convert": ["convert", checkpoint, "--out=model"],
        "pretrained": ["sample", "--pretrained=model", "--support=support", "--num_images=2", "--out=2", "--steps=2"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Folder with what each command has printed."""
    folder = tmp_path_factory.mktemp("quiet")
    shutil.copytree(image_folder / "class00", folder / "support")
    for image in sorted((folder / "support").iterdir())[5:]:
        image.unlink()
    (folder / "commands.json").write_text(json.dumps(commands(image_folder)))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "PL_GLOBAL_SEED")
    }
    environment |= {"OMP_NUM_THREADS": "1", "LIGHTNING_VFS_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = f"{REPOSITORY}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    script = [sys.executable, str(Path(__file__).with_name("all_commands.py")), "commands.json"]
    done = subprocess.run(script, cwd=folder, env=environment, timeout=600, check=False)
    assert done.returncode == 0, (max(folder.glob("*.err"), key=os.path.getmtime)).read_text()
    return folder


@pytest.mark.parametrize("name", commands(Path()))
def test_a_command_prints_lines_of_ours_only(printed: Path, name: str) -> None:
    both = [(printed / f"{name}.{suffix}").read_text() for suffix in ("out", "err")]
    assert any(text.strip() for text in both)
    assert [line for text in both for line in not_ours(text)] == []


def test_each_line_comes_once(printed: Path) -> None:
    lines = (printed / "resume.err").read_text().splitlines()
    begins = [line.split(":")[0].split(" ")[0] for line in lines]
    assert begins == ["--ckpt_path", "Training", "Data", "Training", "Trained", "Written", "Next"]
    assert f"from {CHECKPOINT} on cpu, precision 32-true, seed 0." in lines[1]
    assert lines[3].startswith("Training: 8/8 steps (100%)")


# -- what is left out, and what is not --------------------------------------------------------------------------------


def test_other_messages_pass(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(UserWarning) as given, quiet(training=True), caplog.at_level(logging.INFO):
        rank_zero_info("Loading `train_dataloader` to estimate number of stepping batches.")
        rank_zero_info("Time limit reached.")
        warnings.warn("The dirpath has changed from 'a' to 'b', therefore ...", stacklevel=1)
        warnings.warn("The learning rate has changed from 'a' to 'b'", stacklevel=1)
    assert caplog.messages == ["Time limit reached."]
    assert [str(warning.message) for warning in given] == ["The learning rate has changed from 'a' to 'b'"]


def test_afterwards_everything_is_as_before(caplog: pytest.LogCaptureFixture) -> None:
    filters = list(warnings.filters)
    with quiet(training=True):
        pass
    assert list(warnings.filters) == filters
    assert not any(logging.getLogger(name).filters for name in LOGGED)


@pytest.mark.parametrize(("training", "heard"), [(True, 1), (False, 0)])
def test_a_run_that_goes_on_without_a_callback_hears_of_it(training: bool, heard: int) -> None:
    with warnings.catch_warnings(record=True, action="always") as given, quiet(training):
        warnings.warn(
            "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided",
            stacklevel=1,
        )
    assert len(given) == heard


@pytest.mark.parametrize(("rank", "heard"), [("0", 1), ("1", 0)])
def test_what_every_rank_warns_of_is_heard_once(rank: str, heard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    with warnings.catch_warnings(record=True, action="always") as given, quiet(training=True):
        warnings.warn("The configuration says sets of 5, but the weights were made for sets of 6 (...)", stacklevel=1)
    assert len(given) == heard
