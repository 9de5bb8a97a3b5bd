"""lightning-vfs data: what training would see of a folder."""

from __future__ import annotations

from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from PIL import Image

from lightning_vfs.cli import main
from tests.data.official import cifar100, write_tar


def test_it_says_what_a_folder_holds_and_draws_sets(image_folder: Path, tmp_path: Path, capsys) -> None:
    flags = [f"--root={image_folder}", "--image_size=8", "--split_fractions=[0.5,0.25,0.25]", f"--out={tmp_path}"]
    assert main(["data", *flags]) == 0
    out = capsys.readouterr().out
    assert "train 6 classes, 48 images; val 3 classes, 24 images; test 3 classes, 24 images; sets of 6 x 3 x 8" in out
    assert "; 8 images a class" in out and f"--data.root {image_folder}" in out
    for split, rows in (("train", 6), ("val", 3), ("test", 3)):
        with Image.open(tmp_path / f"{split}.png") as picture:
            # 5 images of a support, the line, and the image held out; 48 pixels a side and 2 around each
            assert picture.size == (6 * 52 + 16 + 4, rows * 52 + 4)


def test_a_wrong_folder_is_one_line(tmp_path: Path, capsys) -> None:
    assert main(["data", f"--root={tmp_path / 'nothing'}"]) == 1
    assert f"There is no {tmp_path / 'nothing'}" in capsys.readouterr().err


def test_a_folder_whose_name_is_no_text_is_printed(image_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Standard output is UTF-8 and strict, as in a terminal."""
    folder = tmp_path / b"by\xe9tes".decode(errors="surrogateescape")
    folder.symlink_to(image_folder)
    written = BytesIO()
    with TextIOWrapper(written, encoding="utf-8", errors="strict") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert main(["data", f"--root={folder}", "--image_size=8", f"--out={tmp_path / 'out'}"]) == 0
        stdout.flush()
        assert rb"by\udce9tes" in written.getvalue()


def test_it_shows_the_data_of_a_configuration(tmp_path: Path, capsys) -> None:
    write_tar(tmp_path / "cifar-100-python.tar.gz", cifar100(1, 1))
    flags = [f"--data.root={tmp_path}", "--set_size=2", "--image_size=8", f"--out={tmp_path / 'out'}"]
    assert main(["data", "--config", "data/cifar100", *flags, "--partition=cifar-fs"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("train 64 classes, 128 images; val 16 classes, 32 images; test 20 classes, 40 images")
    command = f"fit --config data/cifar100 --data.root {tmp_path} --data.partition cifar-fs --data.set_size 2"
    assert f"Next: lightning-vfs {command} --data.image_size 8\n" in out


def test_it_shows_a_data_set_by_name(tmp_path: Path, capsys) -> None:
    write_tar(tmp_path / "cifar-100-python.tar.gz", cifar100(1, 1))
    flags = ["--root", str(tmp_path), "--set_size=2", "--image_size=8", f"--out={tmp_path / 'out'}"]
    assert main(["data", "--data", "CIFAR100Sets", *flags]) == 0
    out = capsys.readouterr().out
    assert f"fit --data CIFAR100Sets --data.root {tmp_path} --data.set_size 2" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "Pictures"], "There is no data set Pictures; there are CelebASets, CIFAR100Sets"),
        (["--data", "pathlib.Path"], "pathlib.Path is not a data set"),
        (["--config", "eval/fsdm"], "has no data set"),
        (["--config", "data/cub", "--data", "GlyphSets"], "--data is GlyphSets and --config"),
    ],
)
def test_a_wrong_data_set_is_one_line(flags: list[str], message: str, capsys) -> None:
    assert main(["data", *flags, "--root", "x"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
