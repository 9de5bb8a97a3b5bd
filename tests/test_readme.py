"""The README's commands and code run, in order, in a folder like a user's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_vfs.cli import main
from lightning_vfs.commands import configurations

pytestmark = pytest.mark.filterwarnings("ignore:glyph-cnn sees images")  # a stand-in for Inception

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
    "--accelerator=cpu", "--fid.num_images=4", "--fid.steps=2", "--fid.sampler=ddim",
    "--fid.feature_extractor=glyph-cnn", "--fid.options.kid_subset_size=2", "--fid.options.isc_splits=1",
]  # fmt: skip


def photos(root: Path) -> None:
    """12 classes of 30 photos, of many formats and sizes, with what else lies in folders of photos."""
    rng = np.random.default_rng(0)
    names = ["cat", "Großer Hund", "猫", "it's", "a.b", "UPPER", *(f"class {i}" for i in range(6))]
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(30):
            height, width = rng.integers(20, 60, 2)
            photo = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            how = FORMATS[i % len(FORMATS)]
            photo.convert(how.mode).save(folder / f"IMG_{i:04d}{how.suffix}", **how.options)
        (folder / "Thumbs.db").write_bytes(b"thumbs")
        (folder / ".DS_Store").write_bytes(b"store")
        (folder / "IMG_0031.MOV").write_bytes(b"film")
    (root / "notes.txt").write_text("holidays")
    (root / "annotations.json").write_text("{}")


class Format(NamedTuple):
    """How a photo is saved."""

    suffix: str
    mode: str
    options: dict


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
FORMATS = [
    Format(".jpg", "RGB", {"exif": ROTATED}), Format(".JPG", "L", {}), Format(".jpeg", "CMYK", {"progressive": True}),
    Format(".png", "RGBA", {}), Format(".PNG", "P", {}), Format(".png", "I;16", {}), Format(".png", "1", {}),
    Format(".webp", "RGB", {}), Format(".gif", "P", {}), Format(".bmp", "RGB", {}), Format(".tif", "RGB", {}),
]  # fmt: skip


def many_classes(root: Path) -> None:
    """300 classes of 6 images, as few as sets of 6 take."""
    rng = np.random.default_rng(0)
    for name in ("cat", *(f"n{i:08d}" for i in range(299))):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{i}.png")


def omniglot(root: Path) -> None:
    """Laid out as Omniglot's archive is: alphabets, characters, 20 drawings of each in black and white."""
    rng = np.random.default_rng(0)
    for alphabet, characters in (("Early_Aramaic", 11), ("Greek", 12), ("Latin", 13)):
        for character in range(1, characters + 1):
            folder = root / alphabet / f"character{character:02d}"
            folder.mkdir(parents=True)
            for drawer in range(1, 21):
                drawing = Image.fromarray(rng.integers(0, 2, (105, 105), dtype=np.uint8) * 255).convert("1")
                drawing.save(folder / f"{character:04d}_{drawer:02d}.png")


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], None]], Path]:
    """The repository's configurations and a user's images."""

    def make(images: Callable[[Path], None]) -> Path:
        folder = tmp_path_factory.mktemp("user")
        shutil.copytree(ROOT / "configs", folder / "configs")
        images(folder / "path" / "to" / "images")
        for name in ("glyphs", "folders"):
            make_checkpoints_frequent(folder / "configs" / f"{name}.yaml")
        evaluate_with_glyph_cnn(folder / "configs" / "fid.yaml")
        return folder

    return make


def make_checkpoints_frequent(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    (saving,) = (c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("ModelCheckpoint"))
    saving["init_args"]["every_n_train_steps"] = 1
    path.write_text(yaml.safe_dump(config))


def evaluate_with_glyph_cnn(path: Path) -> None:
    """Inception's weights are a download, which tests do without."""
    config = yaml.safe_load(path.read_text())
    (fid,) = config["trainer"]["callbacks+"]
    fid["init_args"] = {"num_images": 4, "steps": 2, "feature_extractor": "glyph-cnn"}
    path.write_text(yaml.safe_dump(config))


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 8
    assert {command.split()[0] for command in COMMANDS} == {"make", "lightning-vfs"}


def run(line: str, *more: str) -> int:
    """Run a command of the README, made smaller."""
    program, *args = shlex.split(line)
    if program == "make":
        subprocess.run(["make", "--dry-run", "-C", str(ROOT), *args], check=True, capture_output=True)
        return 0
    if args[0] in ("fit", "predict"):
        args += SMALLER
        if "glyphs" in args:
            args += ["--data.image_size=16"]
        if "--ckpt_path" in args:
            args += ["--trainer.max_steps=4", "--trainer.max_epochs=-1"]
    args += {"test": ["--trainer.accelerator=cpu"], "evaluate": FEWER, "sample": ["--steps=2"]}.get(args[0], [])
    return main([*args, *more])


def test_readme_commands_run_in_order_on_photos(user_folder, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = user_folder(photos)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(configurations, "FOLDER", folder / "configs")
    for line in COMMANDS:
        if "ddp" not in line:  # needs processes of its own: test_training_on_two_ranks
            assert run(line) == 0, f"{line}\n{capsys.readouterr().err}"
    assert (folder / "out" / "grid.png").is_file()
    assert (folder / "model" / "model.safetensors").is_file()
    run_python_blocks()


@pytest.mark.parametrize(
    ("images", "level", "support", "says"),
    [
        (many_classes, [], "cat", "train 240 classes, 1,440 images"),
        (omniglot, ["--data.class_level=2"], "Greek/character03", "train 28 classes, 560 images"),
    ],
    ids=["many_classes", "omniglot"],
)
def test_they_run_on_other_folders(
    images, level: list[str], support: str, says: str, user_folder, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """From the first look at them to a figure, as the README has it, with the option that it names for their level."""
    monkeypatch.chdir(user_folder(images))
    first = ("data", "fit", "sample", "test", "evaluate")
    lines = [next(line for line in COMMANDS if line.startswith(f"lightning-vfs {name} ") and (
        "path/to/images" in line or name in ("test", "evaluate"))) for name in first]  # fmt: skip
    for line in lines:
        more = [] if line.split()[1] in ("sample", "test", "evaluate") else level
        more = ["--class_level=2"] if more and line.split()[1] == "data" else more
        assert run(line.replace("images/cat", f"images/{support}"), *more) == 0, f"{line}\n{capsys.readouterr().err}"
        if line.startswith("lightning-vfs data"):
            shown = capsys.readouterr().out
            assert says in shown
            assert " ".join(["lightning-vfs fit --data FolderSets --data.root path/to/images", *level]) in (
                shown.replace("class_level 2", "class_level=2")
            )
    assert Path("out/grid.png").is_file()


def run_python_blocks() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    scope: dict = {}
    exec(code.replace("steps=50", "steps=2"), scope)
    assert scope["images"].shape == (8, 3, 8, 8)


@pytest.mark.slow  # tests/commands/test_ranks.py compares two ranks with one in every run
def test_training_on_two_ranks(user_folder) -> None:
    folder = user_folder(many_classes)
    (line,) = (line for line in COMMANDS if "ddp" in line)
    _, *args = shlex.split(line)
    done = subprocess.run(
        [sys.executable, "-m", "lightning_vfs", *args, *SMALLER, "--data.image_size=16",
         "--trainer.logger.init_args.name=ddp"],
        cwd=folder, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "ddp" / "version_0" / "checkpoints" / "last.ckpt").is_file()
