"""scripts/emoji.py: packages of drawings to a folder of classes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_vfs.core.files import file_sha256
from lightning_vfs.data import FolderSets
from tests.data.official import write_folder, write_tar

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "emoji.py"))
LICENCES = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
COLOURS = {"noto": "#ff0000", "twemoji": "#00ff00", "openmoji": "#0000ff"}
NAMES = {"cat": "Animals & Nature", "dog": "Animals & Nature", "pizza": "Food & Drink", "key": "Objects"}


def package(designer: str, names: list[str]) -> dict[str, bytes]:
    """Files of a package; each drawing is a square in the designer's colour, in the lower right quarter."""
    body = f'<path fill="{COLOURS[designer]}" d="M8 8h8v8H8z"/>'
    icons = {name: {"body": body} for name in [*names, "cat-dark-skin-tone", "flag-france"]}
    licence = LICENCES[designer]
    info = {"name": designer.title(), "author": {"name": f"{designer} authors", "url": f"https://{designer}.example"}}
    info |= {"license": {"title": licence.replace("-", " "), "spdx": licence, "url": "https://licence.example"}}
    categories: dict[str, list[str]] = {}
    for name in names:
        categories.setdefault(NAMES[name].replace("& ", "") if designer == "openmoji" else NAMES[name], []).append(name)
    contents = {
        "icons.json": {"prefix": designer, "icons": icons, "width": 16, "height": 16},
        "info.json": info,
        "metadata.json": {"categories": categories},
    }
    return {f"package/{name}": json.dumps(content).encode() for name, content in contents.items()}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """All drew the cat, the dog and the pizza; two of them the key. One package is unpacked."""
    folder = tmp_path / "packages"
    write_tar(folder / "iconify-json-noto-1.0.0.tgz", package("noto", list(NAMES)))
    write_tar(folder / "iconify-json-twemoji-1.0.0.tgz", package("twemoji", list(NAMES)))
    unpacked = package("openmoji", ["cat", "dog", "pizza"])
    write_folder(folder / "openmoji", {name.removeprefix("package/"): content for name, content in unpacked.items()})
    return folder


def make(packages: Path, out: Path, *flags: str) -> int:
    return SCRIPT["main"](["--packages", str(packages), "--out", str(out), "--image_size", "16", *flags])


def drawn(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_drawings_of_one_name_are_a_class(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert make(packages, out, "--min_designers", "3") == 0
    assert drawn(out / "images") == sorted(f"{name}/{d}.png" for name in ("cat", "dog", "pizza") for d in COLOURS)
    with Image.open(out / "images" / "cat" / "twemoji.png") as image:
        assert image.size == (16, 16)
        assert image.convert("RGB").getpixel((12, 12)) == (0, 255, 0)
        assert image.convert("RGB").getpixel((4, 4)) == (255, 255, 255)
    assert "9 emoji of 3 classes by 3 designers" in capsys.readouterr().out
    said = (out / "ATTRIBUTION.md").read_text()
    for designer, licence in LICENCES.items():
        assert f"{designer} authors (https://{designer}.example), {licence.replace('-', ' ')}" in said
    assert "share-alike" in said
    made = json.loads((out / "emoji.json").read_text())
    assert made["packages"]["noto"] == file_sha256(packages / "iconify-json-noto-1.0.0.tgz")
    data = FolderSets(str(out / "images"), set_size=3, image_size=16, cache_dir=str(tmp_path / "cache"))
    assert data.describe().startswith("train 1 classes, 3 images; val 1 classes, 3 images; test 1 classes, 3 images")
    assert make(packages, out) == 1
    assert "is not empty: choose another --out" in capsys.readouterr().err


def test_a_category_and_a_designer_may_be_held_out(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--min_designers", "2", "--hold_out_category", "Food & Drink", "--hold_out_designer", "openmoji"]
    assert make(packages, out, *flags) == 0
    both = ("noto", "twemoji")
    train = [f"train/{name}/{designer}.png" for name in ("cat", "dog", "key") for designer in both]
    assert drawn(out / "images") == sorted([*train, *(f"test/pizza/{designer}.png" for designer in both)])
    assert drawn(out / "held_out") == [f"openmoji/{name}.png" for name in ("cat", "dog", "pizza")]


def test_permissive_licences_only(packages: Path, tmp_path: Path) -> None:
    assert make(packages, tmp_path / "out", "--permissive", "--min_designers", "1") == 0
    assert {Path(path).stem for path in drawn(tmp_path / "out")} == {"noto"}
    assert "share-alike" not in (tmp_path / "out" / "ATTRIBUTION.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_designers", "4"], "None of 4 names was drawn by 4 designers"),
        (
            ["--min_designers", "2", "--hold_out_category", "tools"],
            "There is no category 'tools': there are animals (2)",
        ),
        (["--hold_out_designer", "apple"], "There is no designer apple: there are noto, openmoji, twemoji"),
    ],
)
def test_what_cannot_be_made_is_named(
    packages: Path, tmp_path: Path, capsys: Any, flags: list[str], message: str
) -> None:
    assert make(packages, tmp_path / "out", *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "images").exists()


def test_wrong_packages_are_named(packages: Path, tmp_path: Path, capsys: Any) -> None:
    assert make(tmp_path / "none", tmp_path / "out") == 1
    assert f"There is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    write_tar(packages / "iconify-json-noto-2.0.0.tgz", package("noto", ["cat"]))
    assert make(packages, tmp_path / "out") == 1
    assert "holds noto more than once" in capsys.readouterr().err
    (packages / "iconify-json-noto-2.0.0.tgz").write_bytes(b"no archive")
    assert make(packages, tmp_path / "out") == 1
    assert "iconify-json-noto-2.0.0.tgz cannot be read" in capsys.readouterr().err
