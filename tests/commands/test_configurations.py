"""`--config NAME`: configurations that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_vfs.cli import main
from lightning_vfs.commands.configurations import FOLDER, names, resolve
from lightning_vfs.core import ConfigError


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    with pytest.raises(SystemExit) as end:
        main([*args, "--print_config"])
    shown = capsys.readouterr()
    assert end.value.code == 0, shown.err
    return yaml.safe_load(shown.out)


def test_names_are_those_of_the_files() -> None:
    assert {"glyphs", "folders", "baselines/unconditional", "scale/one_node", "eval/fsdm"} <= set(names())
    assert [str(FOLDER / f"{name}.yaml") for name in names()] == [
        path for name in names() for path in resolve(["-c", name])[1:]
    ]


@pytest.mark.parametrize("name", ["glyphs", "glyphs.yaml", "configs/glyphs.yaml"])
def test_a_name_is_a_packaged_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(FOLDER / "glyphs.yaml")
    assert resolve(["--config", name, "--data.set_size=4"]) == ["--config", path, "--data.set_size=4"]
    assert resolve([f"--config={name}"]) == [f"--config={path}"]


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("glyphs", "configs/glyphs.yaml"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
        assert resolve(["--config", file]) == ["--config", file]


def test_text_and_other_options_are_left_alone() -> None:
    args = ["--config", "trainer: {max_steps: 2}", "--config={}", "--ckpt_path", "glyphs", "--config_of_mine=glyphs"]
    assert resolve(args) == args


def test_an_unknown_name_lists_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"--config mine: there is no such file.* baselines/class_conditional, .*glyphs"
    ):
        resolve(["--config", "mine"])
    assert main(["fit", "--config=mine"]) == 1
    assert capsys.readouterr().err.startswith("ConfigError: --config mine: ")


def test_fit_and_evaluate_take_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["fit", "--config", "glyphs", "--config=scale/one_node", "--trainer.max_steps=7"]
    trainer = printed(args, capsys)["trainer"]
    assert (trainer["max_epochs"], trainer["strategy"], trainer["max_steps"]) == (
        yaml.safe_load((FOLDER / "glyphs.yaml").read_text())["trainer"]["max_epochs"],
        "ddp",
        7,
    )
    fid = printed(["evaluate", "--config", "eval/fsdm"], capsys)["fid"]
    assert fid["num_images"] == yaml.safe_load((FOLDER / "eval" / "fsdm.yaml").read_text())["fid"]["num_images"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_loggers_come_beside_those_of_a_configuration(name: str, capsys) -> None:
    loggers = printed(["fit", "--config=glyphs", f"--config=loggers/{name}"], capsys)["trainer"]["logger"]
    kinds = [logger["class_path"].rpartition(".")[2] for logger in loggers]
    assert kinds == ["CSVLogger", "TensorBoardLogger", {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}[name]]
