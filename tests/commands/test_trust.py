"""Folders from other people: no code of them runs, unless the user has named it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.commands.trust import check_class_paths
from lightning_vfs.core.errors import CheckpointError, UntrustedCodeError

from ..processes import run

EVIL = "from pathlib import Path\nPath('{mark}').touch()\n"
OWN = (
    EVIL
    + """
from dataclasses import replace
from lightning_vfs.data import FolderSets
from lightning_vfs.modules.set_encoder import SetEncoder

class Sets(FolderSets):
    pass

class Encoder(SetEncoder):
    def __init__(self, config):
        super().__init__(replace(config, encoder=replace(config.encoder, architecture="set_vit")))

    def forward(self, x_set, *_, **__):
        return x_set.flatten(1).mean(1, keepdim=True).expand(-1, 16)
"""
)
FEW = [
    "--accelerator=cpu", "--fid.feature_extractor=glyph-cnn", "--fid.num_images=2", "--fid.num_real_images=4",
    "--fid.steps=1", "--fid.few_shot_way=null", "--fid.splits=[out]",
]  # fmt: skip


@pytest.fixture
def downloaded(trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, which is the working folder, with code in it that leaves a file when it is imported."""
    run_folder = tmp_path / "run"
    shutil.copytree(trained().parents[1], run_folder)
    (run_folder / "own.py").write_text(OWN.format(mark=tmp_path / "imported"))
    for name in ("pillow_heif", "diffusers", "own2/part"):
        (run_folder / name).parent.mkdir(exist_ok=True)
        (run_folder / f"{name}.py").write_text(EVIL.format(mark=tmp_path / "shadowed"))
    Image.new("RGB", (8, 8)).save(run_folder / "cat.png")
    monkeypatch.chdir(run_folder)
    return run_folder


def change_data(folder: Path, **changes: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"] |= changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def change_encoder(folder: Path, path: str, **hyper_parameters: object) -> Path:
    """Let the folder's checkpoint and a pretrained folder name an encoder."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["config"]["encoder"]["architecture"] = path
    checkpoint["hyper_parameters"] |= hyper_parameters
    torch.save(checkpoint, folder / "checkpoints/last.ckpt")
    return folder / "checkpoints/last.ckpt"


def command(*args: object) -> tuple[int, str]:
    done = run("-m", "lightning_vfs", *args)
    return done.returncode, done.stderr + done.stdout


def test_evaluate_imports_nothing_that_the_folder_names(downloaded: Path, tmp_path: Path) -> None:
    change_data(downloaded, class_path="own.Sets")
    evaluate = ["evaluate", "--ckpt_path=checkpoints/last.ckpt", *FEW]
    code, said = command(*evaluate)
    assert code == 1 and "Traceback" not in said
    assert f"UntrustedCodeError: {downloaded}/config.yaml names own.Sets" in said and "--trust own.Sets" in said
    assert not (tmp_path / "imported").exists() and not (tmp_path / "shadowed").exists()

    Path("pillow_heif.py").unlink()
    code, said = command(*evaluate, "--trust=own.Sets")  # the user's own run
    assert code == 0, said
    assert (tmp_path / "imported").exists()


def test_what_the_user_names_is_imported_from_the_working_folder(downloaded: Path, tmp_path: Path) -> None:
    images = yaml.safe_load((downloaded / "config.yaml").read_text())["data"]["init_args"]["root"]
    data = ["--data=own.Sets", f"--data.root={images}", "--data.image_size=8"]
    Path("pillow_heif.py").unlink()
    assert command("evaluate", "--ckpt_path=checkpoints/last.ckpt", *FEW, *data)[0] == 0
    assert (tmp_path / "imported").exists() and not (tmp_path / "shadowed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"class_path": {"own.Sets": 1}},
        {"class_path": "subprocess.Popen"},
        {"init_args": {"root": {"class_path": "own.Sets"}}},
        {"init_args": {"root": "x", "split_fractions": [{"class_path": "own.Sets"}]}},
        {"dict_kwargs": {"a": 1}},
        {"init_args": [1]},
    ],
)
def test_other_ways_to_name_code_in_a_runs_configuration(
    downloaded: Path, tmp_path: Path, changes: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    change_data(downloaded, **changes)
    assert main(["evaluate", "--ckpt_path=checkpoints/last.ckpt", *FEW]) == 1
    assert f"{downloaded}/config.yaml" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()


def test_a_configuration_that_grows_when_it_is_read(downloaded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'] * 9)}]\n" for i in range(12))
    (downloaded / "config.yaml").write_text(f"{levels}data:\n  class_path: GlyphSets\n  init_args: {{root: *a11}}\n")
    assert main(["evaluate", "--ckpt_path=checkpoints/last.ckpt", *FEW]) == 1
    assert "more than 10,000 values" in capsys.readouterr().err


def test_the_folder_to_write_to_is_not_the_files_choice(downloaded: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((downloaded / "config.yaml").read_text())["data"]["init_args"]
    change_data(downloaded, init_args=config | {"cache_dir": str(tmp_path / "elsewhere")})
    assert main(["evaluate", "--ckpt_path=checkpoints/last.ckpt", *FEW]) == 0
    assert not (tmp_path / "elsewhere").exists()


def test_an_encoder_that_a_checkpoint_names(downloaded: Path, tmp_path: Path) -> None:
    checkpoint = change_encoder(downloaded, "own.Encoder")
    model = VFSDDPM.load_from_checkpoint  # in Python: not imported
    with pytest.raises(UntrustedCodeError, match=r"last.ckpt names own.Encoder.*in Python, import it before"):
        model(checkpoint)
    code, said = command("sample", f"--ckpt_path={checkpoint}", "--support=cat.png", "--out=out")
    assert code == 1 and "--trust own.Encoder" in said and "Traceback" not in said
    assert not (tmp_path / "imported").exists() and not (tmp_path / "shadowed").exists()
    code, said = command("convert", f"--ckpt_path={checkpoint}", "--out=model", "--trust", "own")
    assert code == 0, said


def test_a_pretrained_folder_that_names_an_encoder(downloaded: Path, tmp_path: Path, capsys) -> None:
    VFSDDPM.load_from_checkpoint("checkpoints/last.ckpt").save_pretrained("model")
    config = json.loads(Path("model/config.json").read_text())
    config["denoiser"]["architecture"] = "own2.part.Denoiser"
    Path("model/config.json").write_text(json.dumps(config))
    assert main(["sample", "--pretrained=model", "--support=cat.png", "--out=out"]) == 1
    assert "UntrustedCodeError: model/config.json names own2.part.Denoiser" in capsys.readouterr().err
    assert not (tmp_path / "shadowed").exists()


@pytest.mark.parametrize("key", ["_instantiator", "_class_path"])
def test_a_checkpoint_cannot_say_what_builds_it(downloaded: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"says by {key} how to build its model"):
        VFSDDPM.load_from_checkpoint(change_encoder(downloaded, "set_vit", **{key: "own.Encoder"}))


@pytest.mark.parametrize("path", ["subprocess.Popen", "torch.nn.Linear", "os.system", "own.Encoder.x"])
def test_what_is_imported_already_is_not_run_as_a_network(downloaded: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match=r"last.ckpt (names|is damaged)"):
        VFSDDPM.load_from_checkpoint(change_encoder(downloaded, path))


def test_fit_continues_with_a_network_that_the_command_names(downloaded: Path, tmp_path: Path) -> None:
    checkpoint = change_encoder(downloaded, "own.Encoder")
    flags = [f"--config={downloaded / 'config.yaml'}", f"--ckpt_path={checkpoint}"]
    code, said = command("test", *flags)
    assert code == 1 and "--trust own.Encoder" in said
    Path("pillow_heif.py").unlink()
    code, said = command("validate", *flags, "--model.config.encoder.architecture=own.Encoder")
    assert code == 0, said


def test_transforms_that_a_file_names_are_torchvisions_or_trusted() -> None:
    def check(path: str, trusted: list[str]) -> None:
        check_class_paths(Path("config.yaml"), {"init_args": {"augmentation": [{"class_path": path}]}}, trusted)

    check("torchvision.transforms.v2.RandomHorizontalFlip", [])
    check("mine.Blur", ["mine"])
    for path in ("mine.Blur", "torchvision.transforms.v2.functional.os.system", "torchvision.transforms.v2x.Flip"):
        with pytest.raises(UntrustedCodeError, match="which is not part of lightning_vfs"):
            check(path, [])
