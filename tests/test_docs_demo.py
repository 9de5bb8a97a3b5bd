"""docs/demo.md: its code runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_vfs import VFSDDPM

PAGE = (Path(__file__).parents[1] / "docs" / "demo.md").read_text()


def test_the_hook_is_called_after_every_step(
    tiny_model: Callable[..., VFSDDPM],
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    shutil.copytree(image_folder / "class00", "images/cat")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    scope: dict = {}
    exec(code, scope)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [str(left) for left in reversed(range(10))]
    assert scope["images"].shape == (8, 3, 8, 8)
