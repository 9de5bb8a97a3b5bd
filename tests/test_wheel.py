"""The wheel, installed outside the checkout: what is in it, and the README's first commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow  # a virtual environment, and four runs that import torch

ROOT = Path(__file__).parents[1]
SOURCES = ("lightning_vfs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
FEWER = """
trainer:
  accelerator: cpu
  max_steps: 2
data:
  init_args: {batch_size: 2, sets_per_epoch: 4, eval_sets: 2, num_workers: 0}
model:
  config:
    encoder: {dim: 16, depth: 1}
    denoiser: {dim: 24, depth: 1}
"""


def run(*command: object, cwd: Path) -> str:
    """Output of a command in a folder that is not the checkout, with no way to import from the checkout."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=outside, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves files behind, and would take old ones up."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        source, copy = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    run(sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('.')", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel and, of this one, the packages that the wheel depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # Only now: where lightning_vfs is installed already, pip would leave the wheel out.
    site = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def test_data_files_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = ROOT / "lightning_vfs"
    expected = {package / "py.typed", package / "metrics" / "glyph_cnn.safetensors", *package.rglob("*.yaml")}
    expected |= {path for path in (package / "pretrained").rglob("*") if path.is_file()}
    assert package / "pretrained" / "glyphs" / "model.safetensors" in expected
    assert len(expected) > 10
    assert {path.relative_to(ROOT).as_posix() for path in expected} <= inside


def test_the_readmes_first_commands_run_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"## Install with pip\n.*?```bash\n(.*?)```", readme, re.S)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [command[:4] for command in commands[:2]] == [
        ["lightning-vfs", "fit", "--config", "glyphs"],
        ["lightning-vfs", "predict", "--config", "glyphs"],
    ]
    installed = Path(run(environment / "python", "-c", "import lightning_vfs as v; print(v.__file__)", cwd=tmp_path))
    assert environment.parent in installed.parents
    assert "lightning-vfs fit --config glyphs" in run(environment / "lightning-vfs", "--help", cwd=tmp_path)
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(FEWER)
    for name, *args in commands:
        run(environment / name, *args, "--config", fewer, cwd=tmp_path)
    pictures = tmp_path / "runs" / "glyphs" / "version_1" / "predictions"
    assert sorted(path.name for path in pictures.glob("*.png")) == ["000000.png", "000001.png"]
    (tmp_path / "support").mkdir()
    Image.new("L", (16, 16), 128).save(tmp_path / "support" / "0.png")
    checkpoint = "runs/glyphs/version_0/checkpoints/last.ckpt"
    sample = ["--ckpt_path", checkpoint, "--support", "support", "--num_images", 2, "--steps", 2, "--out", "out"]
    run(environment / "lightning-vfs", "sample", *sample, cwd=tmp_path)
    assert {"0000.png", "0001.png", "grid.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
