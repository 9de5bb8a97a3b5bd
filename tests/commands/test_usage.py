"""Mistakes on the command line: one line, with what was meant; exit status 2 for usage, 1 for the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_vfs.cli import main
from lightning_vfs.commands import sample
from lightning_vfs.commands.lightning import VFSCLI

YAML = {
    "misspelt": "trainer:\n  max_step: 3\n",
    "nested": "seed_everything: 1\nmodel:\n  config:\n    encoder:\n      dimm: 16\n",
    "data": "data:\n  class_path: FolderSets\n  init_args:\n    rot: A\n",
    "callback": "trainer:\n  callbacks+:\n    - class_path: lightning_vfs.EMACallback\n      init_args: {decy: 0.9}\n",
    "value": "model:\n  config:\n    encoder: {dim: wide}\n",
    "syntax": "trainer:\n  max_steps: [3\n  devices: 1\n",
    "tab": "trainer:\n\tmax_steps: 3\n",
    "list": "- trainer\n- data\n",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in YAML.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "file").write_text("")


def said(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit status and what is printed, which is one line."""
    status = main(list(args))
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    return status, printed.err.strip()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("fitt", "there is no subcommand 'fitt'; did you mean fit?"),
        ("fit --config folders", "Missing: --data.root. FolderSets needs it."),
        ("fit --config folders --data.rot A", "--data.rot: FolderSets has no option 'rot'; did you mean --data.root?"),
        ("fit --config folders --dta.root A", "There is no option --dta.root; did you mean --data.root?"),
        ("fit --confg folders", "There is no option --confg; did you mean --config?"),
        ("fit -c glyphs --learning_rat=1", "did you mean --learning_rate?"),
        ("fit -c glyphs epochs", "'epochs' belongs to no option"),
        ("fit --config", "--config needs a value."),
        ("fit --data FoldrSets", "--data FoldrSets: there is no such class; did you mean FolderSets?"),
        ("fit --data lightning_vfs.VFSConfig", "is no SetDataModule; there are .*FolderSets.*GlyphSets"),
        ("fit -c glyphs --trainer.callbacks+=my.Own", "--trainer.callbacks my.Own: there is no such class."),
        ("fit -c glyphs --trainer.max_steps ten", "--trainer.max_steps is 'ten', but must be a whole number."),
        ("fit -c glyphs --trainer.precision bf17", "'bf17', but must be one of .*bf16-mixed.*; did you mean bf16"),
        ("fit -c glyphs --data.set_size six", "--data.set_size is 'six', but must be a whole number."),
        ("fit -c glyphs --config misspelt.yaml", "misspelt.yaml, line 2: .*did you mean trainer.max_steps?"),
        ("fit -c glyphs --config nested.yaml", "nested.yaml, line 5: .*did you mean model.config.encoder.dim?"),
        ("fit --config data.yaml", "data.yaml, line 4: data.rot: FolderSets has .*did you mean data.root?"),
        ("fit -c glyphs --config callback.yaml", "callback.yaml, line 4: .*did you mean trainer.callbacks.decay?"),
        ("fit -c glyphs --config value.yaml", "value.yaml, line 3: .*dim is 'wide', but must be a whole number."),
        ("sample --ckpt_path a.ckpt", "Missing: --out."),
        ("sample --out o --stepps 3", "There is no option --stepps; did you mean --steps?"),
        ("sample --out o --steps ten", "--steps is 'ten', but must be a whole number."),
        ("convert --to checkpoint", "'checkpoint', but must be one of pretrained, ckpt, orbax, safetensors"),
        ("compare fid.json", "give two records, first and second"),
        ("evaluate --fid.stepps 3", "There is no option --fid.stepps; did you mean --fid.steps?"),
        ("data", "Missing: --root."),
    ],
)  # fmt: skip
def test_wrong_usage(args: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = said(capsys, *args.split())
    assert status == 2
    assert line.startswith("lightning-vfs") and re.search(says.replace("?", r"\?"), line), line


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("fit --config foldrs", "no packaged configuration of that name; did you mean folders?"),
        ("fit --config misspell.yaml", "did you mean misspelt.yaml?"),
        ("fit --config .", "--config . is a folder: give a file of it"),
        ("fit --config syntax.yaml", "syntax.yaml, line 3: this is not YAML"),
        ("fit --config tab.yaml", "tab.yaml, line 2: this is not YAML"),
        ("fit --config list.yaml", "list.yaml holds a list"),
        ("fit -c glyphs --trainer.logger WandbLogger", "WandbLogger needs the package wandb, .*pip install wandb"),
        ("fit -c glyphs --trainer.accelerator gpu", "--trainer.accelerator asks for a GPU, and PyTorch finds none"),
        ("fit -c glyphs --trainer.callbacks+=EMACallback --trainer.callbacks.decay=2", "EMACallback.decay is 2.0"),
        ("evaluate --ckpt_path nothing.ckpt", "CheckpointError: There is no checkpoint nothing.ckpt"),
        ("evaluate", "Give either --ckpt_path FILE or --pretrained FOLDER"),
        ("sample --out file --ckpt_path a.ckpt", "file is a file, not a folder"),
        ("sample --out o --ckpt_path a.ckpt --device cuda:99", "--device cuda:99: PyTorch finds no such device"),
        ("sample --out o --ckpt_path a.ckpt --device gpuu", "--device gpuu: PyTorch finds no such device"),
        ("data --root . --out file", "file is a file, not a folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_done(
    args: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "gpu" in args:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, line = said(capsys, *args.split())
    assert status == 1
    assert re.search(says.replace("?", r"\?"), line), line


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "load_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["sample", "--out=out", "--ckpt_path=a.ckpt"])

    def broken(self: VFSCLI) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(VFSCLI, "instantiate_trainer", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["fit", "--config=glyphs"])
