"""Weights that are not finite numbers: no command gives a result of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lightning_vfs.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:glyph-cnn sees images"),  # a stand-in for Inception
    pytest.mark.filterwarnings("ignore:The model generated images that are not finite"),  # which an error follows
]

EVALUATE = [
    "--fid.feature_extractor=glyph-cnn", "--fid.num_images=4", "--fid.steps=2", "--fid.splits=[out]",
    "--fid.few_shot_way=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def broken(trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's last checkpoint, in which one weight is not a number."""
    checkpoint = torch.load(trained(), weights_only=True)
    for weights in (checkpoint["state_dict"], checkpoint["current_model_state"]):
        weights["denoiser.final.proj.bias"][0] = torch.nan
    path = tmp_path_factory.mktemp("broken") / "broken.ckpt"
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("command", ["sample", "convert", "validate", "test", "predict", "evaluate"])
def test_every_command_names_them_and_writes_no_result(
    command, broken: Path, config_file: Path, image_folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {
        "sample": ["--steps=2", "--num_images=2", f"--out={tmp_path}", f"--support={image_folder / 'class00'}"],
        "convert": [f"--out={tmp_path / 'model'}"],
        "evaluate": [*EVALUATE, "--data=FolderSets", f"--data.root={image_folder}", "--data.image_size=8"],
    }.get(command, [f"--config={config_file}", f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"])
    assert main([command, *flags, f"--ckpt_path={broken}"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"denoiser\.final\.proj\.bias.* not finite", said), said
    written = [file.name for folder in (tmp_path, broken.parent) for file in folder.rglob("*") if file.is_file()]
    assert not re.findall(r"\S+\.png|fid\.json|\S+\.safetensors", " ".join(written)), written
