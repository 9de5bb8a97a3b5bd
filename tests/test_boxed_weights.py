"""The model that comes with the package: it works offline, and its record is that of its weights."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.core import SamplingConfig
from lightning_vfs.data import GlyphSets, load_support
from lightning_vfs.evaluation import EvaluationPlan, EvaluationRecord, evaluate
from lightning_vfs.training.pretrained import BOXED

FOLDER = BOXED / "glyphs"
README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))


def test_the_folder_is_small_and_whole() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "fid.json", "samples.png", "examples"}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 10_000_000
    assert {weight.dtype for weight in load_file(FOLDER / "model.safetensors").values()} == {torch.float16}


def test_the_card_has_the_figures_of_the_record() -> None:
    card, record = (FOLDER / "README.md").read_text(), EvaluationRecord.read(FOLDER / "fid.json")
    for name, figure in record.figures.items():
        if "_std" not in name:
            assert f"| `{name}` | {figure.value:.4g}" in card
    assert not record.verdicts, "the model in the package copies"


def test_the_readmes_command_makes_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER / "examples" / "0", "path/to/pictures")
    (line,) = re.findall(r"^lightning-vfs (sample --pretrained glyphs .*)$", README, re.M)
    assert main([*shlex.split(line), "--num_images=2", "--steps=2", "--device=cpu"]) == 0
    assert Path("out", "grid.png").is_file()


def test_its_images_show_the_character_of_the_support() -> None:
    """Ink on paper, nearer to their support than to the supports of other characters."""
    model = VFSDDPM.from_pretrained("glyphs")
    supports = torch.stack([load_support(FOLDER / "examples" / str(i), 16, 1) for i in range(6)])
    images = model.sample(supports, 4, steps=10, guidance_scale=1.5)
    means = supports.mean(dim=1).flatten(1)
    nearest = torch.cdist(images.flatten(2).flatten(0, 1), means).argmin(dim=1).view(6, 4)
    assert (nearest == torch.arange(6)[:, None]).float().mean() > 0.75


@pytest.mark.slow  # 200 images in 50 steps
def test_evaluating_again_gives_the_figures_of_the_record() -> None:
    """On fewer images, so within 4 standard errors of the difference."""
    record = EvaluationRecord.read(FOLDER / "fid.json")
    how = record.sampling
    plan = EvaluationPlan(
        num_images=200,
        splits=("out",),
        feature_extractor="glyph-cnn",
        sampling=SamplingConfig(how.steps, how.sampler, guidance_scale=how.guidance or 1.0),
        seed=1,
    )
    again = evaluate(VFSDDPM.from_pretrained("glyphs"), GlyphSets(), plan)
    assert dataclasses.asdict(again.data) == dataclasses.asdict(record.data)
    compared = 0
    for name in ("few_shot_accuracy_all[glyph-cnn]/out", "novel_accuracy[glyph-cnn]/out", "support_affinity/out"):
        ours, theirs = again.figures[name], record.figures[name]
        error = math.hypot(ours.standard_error or math.nan, theirs.standard_error or math.nan)
        assert abs(ours.value - theirs.value) <= 4 * error, (name, ours, theirs)
        compared += 1
    assert compared == 3
