"""docs/own.md: its blocks and commands run, in order."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_vfs.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "own.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
(COMMANDS,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
FEWER = [
    "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.num_workers=0", "--data.sets_per_epoch=8",
    "--data.eval_sets=2", "--data.batch_size=2", "--data.image_size=8", "--model.config.encoder.dim=16",
    "--model.config.encoder.depth=1", "--model.config.denoiser.dim=24", "--model.config.denoiser.depth=1",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images, and the page's mine.py where Python finds it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "images").symlink_to(image_folder)
    (mine,) = (block for block in BLOCKS if block.startswith("# mine.py"))
    (tmp_path / "mine.py").write_text(mine)
    return tmp_path


def test_the_program_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict = {}
    for block in BLOCKS:
        exec(block, scope)
    assert scope["again"].ceiling == 0.5
    assert scope["images"].shape == (2, 4, 3, 16, 16) and scope["batch"].shape == (500, 3, 16, 16)
    assert scope["model"].learning_rate == scope["found"].suggestion()


def test_a_model_class_on_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (shlex.split(line)[1:] for line in COMMANDS.splitlines())
    ceiling = first.index("--model.ceiling") + 1
    tiny = ["0.001" if i == ceiling else word for i, word in enumerate(first)]
    assert main([*tiny, *FEWER, "--trainer.max_steps=4"]) == 0
    run = Path("runs/folders/version_0")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model_class"] == "mine.Truncated" and config["model"]["ceiling"] == 0.001
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["ceiling"] == 0.001
    assert main([*second[: second.index("--trainer.max_steps")], "--trainer.max_steps=8"]) == 0
    again = Path("runs/folders/version_1")
    assert torch.load(again / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    support, last = folder / "path" / "to" / "images" / "class00", again / "checkpoints" / "last.ckpt"
    sample = ["sample", f"--ckpt_path={last}", f"--support={support}", "--num_images=1", "--steps=2", "--out=out"]
    monkeypatch.delitem(sys.modules, "mine")
    assert main(sample) == 1
    said = capsys.readouterr().err
    assert "UntrustedCodeError" in said and "--trust mine.Truncated" in said
    assert main([*sample, "--trust=mine.Truncated"]) == 0
    assert "val/loss=0.001" in said, "the class's loss, in validation too"


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nowhere.Model", "nowhere.Model cannot be imported (No module named 'nowhere')"),
        ("pathlib.Path", "must be a subclass of lightning_vfs.VFSDDPM"),
    ],
)
def test_what_is_no_model_is_refused(named: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config=glyphs", "--model", named]) == 1
    assert says in capsys.readouterr().err
