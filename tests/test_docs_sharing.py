"""docs/sharing.md: its commands and code run, in order, against a hub on this machine."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_vfs.cli import main
from tests.commands.conftest import config_file, trained
from tests.hub_server import Hub

__all__ = ["config_file", "trained"]

PAGE = (Path(__file__).parents[1] / "docs" / "sharing.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.S)
FEWER = {
    "evaluate": [
        "--accelerator=cpu", "--fid.num_images=4", "--fid.steps=2", "--fid.feature_extractor=glyph-cnn",
        "--data.image_size=8",
    ],
    "sample": ["--num_images=2", "--steps=2", "--device=cpu"],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:glyph-cnn sees images", "ignore:few_shot_accuracy among")
def test_the_page_runs(
    hub: Hub, trained: Callable[..., Path], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copy(trained(), "last.ckpt")
    shutil.copytree(image_folder, "images")
    Path("images", "class00").rename("images/cat")
    scope: dict = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, scope)
            continue
        for line in block.splitlines():
            name, *arguments = shlex.split(line)[1:]
            assert main([name, *arguments, *FEWER.get(name, [])]) == 0, line
    assert scope["url"].endswith(hub.sha("user/model", 2))
    assert len(scope["pictures"]) == 8
    assert {"README.md", "fid.json", "samples.png"} < set(hub.files("user/model"))
    assert "Licence of the model: mit." in hub.files("user/model")["README.md"].decode()
