"""`fit` without a configuration: which recipe it takes, what it says, and that options override it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_vfs.cli import main
from lightning_vfs.commands import recipes
from lightning_vfs.commands.recipes import RECIPES, duration, seconds_per_step, with_recipe
from lightning_vfs.core import VFSConfig

TINY = [
    "--steps=2", "--trainer.accelerator=cpu", "--data.sets_per_epoch=4", "--data.eval_sets=2", "--batch_size=2",
    "--model.config.encoder.dim=16", "--model.config.encoder.depth=1", "--model.config.denoiser.dim=12",
    "--model.config.denoiser.depth=1", "--trainer.limit_val_batches=0",
]  # fmt: skip


def images(root: Path, side: int, mode: str) -> Path:
    """Three classes of two images."""
    for label in range(3):
        (root / str(label)).mkdir(parents=True)
        for i in range(2):
            shape = (side, side + 9, 3) if mode == "RGB" else (side + 9, side)
            Image.fromarray(np.full(shape, 90, dtype=np.uint8)).convert(mode).save(root / str(label) / f"{i}.png")
    (root / "0" / "broken.png").write_text("")
    return root


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("side", "mode", "on_cpu", "on_gpu", "channels"),
    [(200, "RGB", 32, 64, 3), (50, "RGB", 32, 32, 3), (28, "L", 16, 16, 1), (105, "1", 32, 64, 1), (8, "P", 16, 16, 3)],
)
def test_images_and_machine_choose(
    side: int, mode: str, on_cpu: int, on_gpu: int, channels: int, gpu: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    root = images(tmp_path / "emoji", side, mode)
    chosen = with_recipe(["fit", "--data", "FolderSets", f"--data.root={root}"])
    assert chosen is not None
    args = dict(arg.removeprefix("--").split("=", 1) for arg in chosen.args if arg.count("=") == 1)
    name = "folders" if gpu else "cpu"
    assert Path(chosen.args[2]).stem == name and f"--config {name}" in chosen.says
    expected = on_gpu if gpu else on_cpu
    assert (int(args["data.image_size"]), int(args["data.channels"])) == (expected, channels)
    assert args["name"] == "emoji"
    if gpu:
        assert args["trainer.precision"] == "bf16-mixed"
    # As many patches as the recipe has at its own size.
    model = yaml.safe_load(Path(chosen.args[2]).read_text())["model"]["config"]
    for part in ("encoder", "denoiser"):
        patch = int(args.get(f"model.config.{part}.patch_size", model[part]["patch_size"]))
        assert expected // patch == 32 // model[part]["patch_size"]


def test_the_builtin_data_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    own, larger = (with_recipe(["fit", "--data=GlyphSets", *more]) for more in ([], ["--data.image_size=32"]))
    assert own is not None and larger is not None
    assert (Path(own.args[2]).stem, Path(larger.args[2]).stem) == ("glyphs", "cpu")
    assert with_recipe(["fit", "--data=lightning_vfs.data.GlyphSets"]).args == own.args  # type: ignore[union-attr]


def test_published_data_has_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for gpu, expected in ((True, "omniglot"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        chosen = with_recipe(["fit", "--data=OmniglotSets", f"--data.root={tmp_path}"])
        assert chosen is not None and Path(chosen.args[2]).stem == expected
        assert {"--data.image_size=28", "--data.channels=1"} <= set(chosen.args)


def test_what_is_given_stays(tmp_path: Path) -> None:
    given = ["--precision=16-true", "--name=mine", "--data.channels=1", "--model.config.encoder.patch_size=7"]
    chosen = with_recipe(["fit", f"--data.root={images(tmp_path / 'a', 40, 'RGB')}", "--data.image_size=28", *given])
    assert chosen is not None
    names = [arg.partition("=")[0] for arg in chosen.args]
    for once in ("--data.channels", "--model.config.encoder.patch_size", "--name", "--data.image_size"):
        assert names.count(once) == 1
    assert "--trainer.precision" not in names and "--model.config.denoiser.patch_size=4" in chosen.args


@pytest.mark.parametrize(
    "args", [["fit", "--config=glyphs"], ["fit", "-c", "x.yaml", "--data=GlyphSets"], ["fit"], ["fit", "--data=No"]]
)
def test_without_data_or_with_a_configuration_there_is_none(args: list[str]) -> None:
    assert with_recipe(args) is None


def test_a_run_says_what_it_will_do_and_its_configuration_repeats_it(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["fit", "--data", "FolderSets", "--data.root", str(image_folder), *TINY]) == 0
    run = Path("runs", image_folder.name, "version_0")
    said = caplog.text
    assert "Recipe: --config cpu, recommended for images of 16 x 16 (those in" in said and "are about 10 wide" in said
    assert "for 2 steps of" in said and f"Files: {run}" in said
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["config"]["encoder"]["pool"] == "patches" and config["trainer"]["max_steps"] == 2
    assert config["data"]["init_args"]["image_size"] == 16 and config["model"]["config"]["denoiser"]["dim"] == 12
    assert main(["fit", f"--config={run / 'config.yaml'}"]) == 0
    first, again = (
        torch.load(Path(run.parent, version, "checkpoints/last.ckpt"), weights_only=True)["state_dict"]
        for version in ("version_0", "version_1")
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_measuring_changes_nothing(tiny_model) -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert 0 < seconds_per_step(model, 2, torch.bfloat16, torch.device("cpu")) < 60
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_durations() -> None:
    given = (4, 100, 2700, 5400, 40_000, 300_000)
    assert [duration(s) for s in given] == [
        "4 seconds",
        "2 minutes",
        "45 minutes",
        "1.5 hours",
        "11.1 hours",
        "3.5 days",
    ]


def test_every_recipe_is_a_configuration_of_its_side() -> None:
    for recipe in RECIPES:
        values = yaml.safe_load((recipes.FOLDER / f"{recipe.name}.yaml").read_text())
        assert values["data"]["init_args"]["image_size"] == recipe.side
        VFSConfig.for_data(values["model"]["config"], values["data"]["init_args"])


def test_the_documentation_has_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for recipe in RECIPES:
        name = "data/..." if recipe.name.startswith("data/") else recipe.name
        assert f"`{name}`" in text and (recipe.data is None or f"`{recipe.data.__name__}`" in text)
