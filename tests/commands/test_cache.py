"""lightning-vfs cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_vfs.cli import main
from lightning_vfs.data import ClassImages
from lightning_vfs.data.cache import cached_images, content_key
from lightning_vfs.data.cache_folder import entries
from lightning_vfs.metrics.feature_cache import FeatureSource, cached_figures, store_features

FEATURES = FeatureSource("0" * 64, 3, "tiny", {"6": 6}, "1" * 64, "float32", "none")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of two folders, features and figures."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIGHTNING_VFS_CACHE", str(folder))
    monkeypatch.setenv("LIGHTNING_VFS_CACHE_SIZE", "1GiB")
    for name in ("a", "b"):
        images = ClassImages(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), ["a"], [0] * 4)
        cached_images(folder, "glyphs", content_key(name), lambda images=images: images, str(tmp_path / name))
    store_features(FEATURES, {"6": torch.zeros(3, 6)})
    cached_figures({"of": "these"}, lambda: {"fid": 1.0})
    return folder


def test_the_list_says_what_of_which_folder_how_large_and_when(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = cached_images(cache, "glyphs", content_key("a"), lambda: pytest.fail("built again"))
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "what", "of", "size", "last", "use"]
    (a,) = (line for line in lines if str(tmp_path / "a") in line)
    (b,) = (line for line in lines if str(tmp_path / "b") in line)
    assert f"glyphs-{content_key('a')}" in a and "4 images of 8 x 8, RGB" in a and a.endswith("in use")
    assert " KiB " in b and not b.endswith("in use")
    assert any("features of real images: 1 files; figures of them: 1" in line for line in lines)
    assert lines[-1].startswith(f"{cache}: ") and lines[-1].endswith(" KiB of at most 1.0 GiB")
    assert len(images) == 4


def test_what_is_named_is_removed(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--clear", str(tmp_path / "a")]) == 0
    assert len(entries(cache)) == 3
    assert main(["cache", "--clear", "features"]) == 0
    assert [entry.name for entry in entries(cache)] == [f"glyphs-{content_key('b')}"]
    capsys.readouterr()
    assert main(["cache", "--clear", "nothing"]) == 1
    assert "--clear nothing" in capsys.readouterr().err
    assert main(["cache", "--clear", "all"]) == 0
    assert not entries(cache)
    assert main(["cache", "--clear", "all"]) == 0
    assert main(["cache"]) == 0


def test_what_is_in_use_is_kept_with_exit_status_1(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = cached_images(cache, "glyphs", content_key("a"), lambda: pytest.fail("built again"))
    assert main(["cache", "--clear", "all"]) == 1
    assert f"Kept: glyphs-{content_key('a')}, which a running job uses" in capsys.readouterr().out
    assert images.uint8(3).unique().tolist() == [0]


def test_a_limit_removes_and_a_check_finds_damage(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "--check"]) == 0
    assert "2 of 2 files are as they were written" in capsys.readouterr().out
    file = cache / f"glyphs-{content_key('b')}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(["cache", "--check"]) == 1
    assert f"{file} is damaged" in capsys.readouterr().out
    assert main(["cache", "--limit", "0"]) == 0
    assert not entries(cache)
    assert main(["cache", "--dir", str(tmp_path / "none")]) == 1


def test_it_needs_neither_torch_nor_lightning() -> None:
    code = "import lightning_vfs.commands.cache, lightning_vfs.cli"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}, sys; print(*{{'torch', 'lightning', 'jsonargparse'}} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == []
