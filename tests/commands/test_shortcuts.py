"""Short options: what they stand for, in what is trained and in the configuration that is saved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from lightning_vfs.cli import main
from lightning_vfs.commands.shortcuts import SHORTCUTS

LOGGERS = """
trainer:
  logger:
    - {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs, name: tiny}}
    - {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: tiny}}
  callbacks+:
    - {class_path: lightning_vfs.SampleGridCallback, init_args: {num_classes: 1, num_images: 1, steps: 1}}
    - class_path: lightning_vfs.FIDCallback
      init_args: {every_n_epochs: 1, num_images: 4, steps: 1, feature_extractor: glyph-cnn}
"""
GIVEN = {
    "steps": ("3", "trainer.max_steps"),
    "batch_size": ("4", "data.init_args.batch_size"),
    "learning_rate": ("0.5", "model.optimizer.learning_rate"),
    "precision": ("bf16-mixed", "trainer.precision"),
    "ema_decay": ("0.75", "EMACallback.decay"),
    "save_every": ("2", "ModelCheckpoint.every_n_train_steps"),
    "sample_every": ("9", "SampleGridCallback.every_n_epochs"),
    "eval_every": ("50", "FIDCallback.every_n_steps"),
    "name": ("mine", "CSVLogger.name"),
}


@pytest.fixture
def files(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text(LOGGERS)
    return [f"--config={config_file}", "--config=more.yaml"]


def option(config: dict, key: str):
    """An option of a configuration; of a callback or logger, by the name of its class."""
    members = {m["class_path"].rpartition(".")[2]: m["init_args"] for m in listed(config)}
    first, *rest = key.split(".")
    found = members[first] if first in members else config[first]
    for name in rest:
        found = found[name]
    return found


def listed(config: dict) -> list[dict]:
    return [*config["trainer"]["callbacks"], *config["trainer"]["logger"]]


def test_a_run_with_all_of_them_is_that_of_its_configuration(files: list[str], capsys) -> None:
    assert set(GIVEN) == set(SHORTCUTS)
    short = [part for name, (value, _) in GIVEN.items() for part in (f"--{name}", value)]
    assert main(["fit", *files, *short, "--trainer.logger.init_args.version=5", "--trainer.limit_val_batches=0"]) == 0
    run = Path("runs/mine/version_5")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for value, key in GIVEN.values():
        assert str(option(config, key)) == value, key
    assert option(config, "trainer.max_epochs") == -1 and option(config, "FIDCallback.every_n_epochs") is None
    assert option(config, "TensorBoardLogger.name") == "mine" and option(config, "TensorBoardLogger.version") == 5
    assert not set(SHORTCUTS) & set(config)
    trained = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert (trained["global_step"], trained["callbacks"]["EMACallback"]["decay"]) == (3, 0.75)
    assert list(run.glob("events.out.tfevents*"))
    # The saved configuration alone is the same run.
    assert main(["fit", f"--config={run / 'config.yaml'}", "--name=again", "--trainer.logger.version=5"]) == 0
    again = torch.load("runs/again/version_5/checkpoints/last.ckpt", weights_only=True)
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in trained["state_dict"].items())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--steps 3 --trainer.max_steps=4", "--steps 3 is short for --trainer.max_steps 3, but there is"),
        ("--trainer.max_epochs 2 --steps=3", "but there is --trainer.max_epochs 2 too: leave one of them out"),
        ("--batch_size 3 --data.init_args.batch_size 2", "--batch_size 3 is short for --data.batch_size 3"),
        ("--ema_decay 0.5 --trainer.callbacks.decay 0.4", "--ema_decay 0.5 is short for --trainer.callbacks.decay 0.5"),
        ("--steps ten", "--steps is 'ten', but must be a whole number."),
        ("--ema_decay high", "--ema_decay is 'high', but must be a number."),
        ("--save_every", "--save_every needs a value."),
        ("--save_evry 3", "There is no option --save_evry; did you mean --save_every?"),
    ],
)
def test_what_contradicts_or_is_no_value_is_refused(files: list[str], args: str, says: str, capsys) -> None:
    assert main(["fit", *files, *args.split()]) == 2
    assert re.search(says.replace("?", r"\?"), capsys.readouterr().err)


def test_the_same_given_twice_is_no_contradiction(files: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", *files, "--steps=3", "--trainer.max_steps=3", "--ema_decay=0.5", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert end.value.code == 0
    assert (option(config, "trainer.max_steps"), option(config, "EMACallback.decay")) == (3, 0.5)


def test_without_such_a_callback_it_says_how_to_add_one(config_file: Path, capsys) -> None:
    assert main(["fit", f"--config={config_file}", "--eval_every=5"]) == 1
    said = capsys.readouterr().err
    assert "has no FIDCallback that takes it: add one, by --trainer.callbacks+=lightning_vfs.FIDCallback" in said
    assert main(["test", f"--config={config_file}", "--steps=5"]) == 2
    assert "There is no option --steps." in capsys.readouterr().err


def test_the_documentation_has_all_of_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for name, short in SHORTCUTS.items():
        option = short.stands_for.rpartition(".")[2]
        assert re.search(rf"^\| `--{name} \w+` \| .*\b{option}\b", text, re.MULTILINE)
