"""lightning-vfs sample: of a support, of a training class, and of nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.core import StaleSetSizeWarning
from lightning_vfs.data import load_support
from lightning_vfs.data.pictures import to_uint8


def test_sample_writes_images_and_a_grid(trained, image_folder: Path, tmp_path: Path, capsys) -> None:
    support = tmp_path / "support"
    support.mkdir()
    for i in range(3):
        Image.open(image_folder / "class00" / f"{i}.png").save(support / f"{i}.png")
    flags = [f"--support={support}", "--num_images=5", "--steps=4"]
    assert main(["sample", f"--ckpt_path={trained()}", *flags, f"--out={tmp_path / 'a'}"]) == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [f"{i:04d}.png" for i in range(5)] + [
        "grid.png", "sample.json",
    ]  # fmt: skip
    with Image.open(tmp_path / "a" / "0000.png") as image:
        assert image.size == (8, 8) and image.mode == "RGB"

    assert main(["convert", f"--ckpt_path={trained()}", f"--out={tmp_path / 'model'}"]) == 0
    assert main(["sample", f"--pretrained={tmp_path / 'model'}", *flags, f"--out={tmp_path / 'b'}"]) == 0
    for name in (p.name for p in (tmp_path / "a").glob("*.png")):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sampling_from_a_stale_checkpoint_warns_once(trained, image_folder: Path, tmp_path: Path) -> None:
    """The table's last row: no data attached, the weights win over the configuration."""
    contents = torch.load(trained(), weights_only=True)
    contents["hyper_parameters"]["config"]["sets"]["set_size"] = 4
    torch.save(contents, tmp_path / "stale.ckpt")
    (tmp_path / "support").mkdir()
    for i in range(5):
        Image.open(image_folder / "class00" / f"{i}.png").save(tmp_path / "support" / f"{i}.png")
    flags = [f"--support={tmp_path / 'support'}", "--num_images=1", "--steps=2", f"--out={tmp_path / 'out'}"]
    with pytest.warns(StaleSetSizeWarning, match=r"says sets of 4.*sets of 6") as caught:
        assert main(["sample", f"--ckpt_path={tmp_path / 'stale.ckpt'}", *flags]) == 0
    assert len([w for w in caught if w.category is StaleSetSizeWarning]) == 1


def test_sample_says_what_is_wrong(trained, image_folder: Path, tmp_path: Path, capsys) -> None:
    out = f"--out={tmp_path / 'out'}"
    assert main(["sample", f"--ckpt_path={trained()}", f"--support={tmp_path / 'nothing'}", out]) == 1
    assert "DataError" in capsys.readouterr().err
    assert main(["sample", f"--support={image_folder}", out]) == 1
    assert "either --ckpt_path FILE or --pretrained FOLDER" in capsys.readouterr().err


def test_of_a_whole_class_as_many_are_taken_as_the_model_takes(trained, image_folder: Path, tmp_path: Path, capsys):
    out, folder = tmp_path / "out", image_folder / "class00"
    many = ["sample", f"--ckpt_path={trained()}", f"--support={folder}", "--num_images=1", "--steps=4", f"--out={out}"]
    assert main(many) == 0
    line, _ = capsys.readouterr().out.split("\n", 1)
    drawn = re.fullmatch(rf"{folder} holds 8 images, of which this model takes 5: (.*), by seed 0\.", line)[1].split(
        ", "
    )
    image = (out / "0000.png").read_bytes()
    few = tmp_path / "few"
    few.mkdir()
    for name in drawn:
        (few / name).write_bytes((folder / name).read_bytes())
    assert main([*many[:2], f"--support={few}", *many[3:]]) == 0
    assert (out / "0000.png").read_bytes() == image
    assert main([*many, "--seed=1"]) == 0
    assert line not in capsys.readouterr().out


def test_nothing_of_an_earlier_run_stays_and_nothing_else_goes(trained, support: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = ["sample", f"--ckpt_path={trained()}", f"--support={support}", "--steps=2", f"--out={out}"]
    assert main([*command, "--num_images=4"]) == 0
    (out / "notes.txt").write_text("mine")
    assert main([*command, "--num_images=2"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["0000.png", "0001.png", "grid.png", "notes.txt", "sample.json"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "0001.png").write_text("mine")
    assert main([*command[:-1], f"--out={mine}", "--num_images=2"]) == 1
    assert "holds 0001.png, which no earlier run has listed in sample.json" in capsys.readouterr().err
    assert (mine / "0001.png").read_text() == "mine" and len(list(mine.iterdir())) == 1
    assert main([*command[:-1], f"--out={mine / '0001.png'}"]) == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_images_that_are_not_finite_are_no_black_pictures(tiny_model, support: Path, tmp_path: Path, capsys) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.denoiser.final.proj.bias[0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    flags = [f"--support={support}", "--steps=2", "--num_images=2", f"--out={out}"]
    assert main(["sample", f"--pretrained={tmp_path / 'model'}", *flags]) == 1
    assert "2 of 2 generated images are not finite, and nothing was written; its weights denoiser.final.proj.bias" in (
        capsys.readouterr().err
    )
    assert list(out.iterdir()) == []


def test_images_are_written_as_they_are_generated(trained, support: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """In batches that change nothing, counted; what was made before an error is there, and no half of the rest."""
    monkeypatch.setattr("lightning_vfs.core.progress.SECONDS_BETWEEN_LINES", 0)
    command = ["sample", f"--ckpt_path={trained()}", f"--support={support}", "--steps=2", "--num_images=70"]
    assert main([*command, f"--out={tmp_path / 'at_once'}", "--batch_size=70"]) == 0
    capsys.readouterr()
    assert main([*command, f"--out={tmp_path / 'out'}", "--batch_size=32"]) == 0
    counts = re.findall(r"Sampling: (\d+)/70 images", capsys.readouterr().err)
    assert counts[:3] == ["32", "64", "70"]
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert len(names) == 71
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "at_once" / name).read_bytes(), name
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size[1] == 8 * (48 + 4) + 4, "the first 64"

    batches, left = VFSDDPM.sample_batches, []

    def breaks(model: VFSDDPM, *args: object, **how: object) -> Iterator[Tensor]:
        for images in batches(model, *args, **how):
            yield images * (torch.nan if left else 1)
            left.append(sorted(path.name for path in (tmp_path / "out").glob("0*.png")))

    monkeypatch.setattr(VFSDDPM, "sample_batches", breaks)
    assert main([*command, f"--out={tmp_path / 'out'}", "--batch_size=32"]) == 1
    assert "32 of 32 generated images are not finite, and only the 32 before them were written" in (
        capsys.readouterr().err
    )
    assert left == [[f"{i:04d}.png" for i in range(32)]] and not (tmp_path / "out" / "grid.png").exists()


def test_a_batch_that_does_not_fit_says_which_option_makes_it_smaller(trained, support, tmp_path, capsys, monkeypatch):
    def full(*_: object, **__: object) -> Iterator[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.")
        yield

    monkeypatch.setattr(VFSDDPM, "sample_batches", full)
    assert main(["sample", f"--ckpt_path={trained()}", f"--support={support}", f"--out={tmp_path / 'out'}"]) == 1
    assert "64 images at a time do not fit cpu's memory: set --batch_size below that" in capsys.readouterr().err


# -- samplers, guidance, and the baselines without a support ----------------------------------------------------------

FEW_SHOT = {"context_dropout": 0.1}
LABELS = {"architecture": "class_label", "num_classes": 3}
NOTHING = {"architecture": "none"}


@pytest.fixture
def support(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of three images of one class."""
    (tmp_path / "support").mkdir()
    for i in range(3):
        Image.open(image_folder / "class00" / f"{i}.png").save(tmp_path / "support" / f"{i}.png")
    return tmp_path / "support"


@pytest.fixture
def sampled(tiny_model: Callable[..., VFSDDPM], tmp_path: Path, capsys):
    """Samples by the command from a tiny model of this encoder: its images, uint8 (m, c, h, w), or what it said."""

    def run(encoder: dict, *flags: str) -> Tensor | str:
        folder, out = tmp_path / "model", tmp_path / "out"
        tiny_model(encoder=encoder).save_pretrained(folder)
        if main(["sample", f"--pretrained={folder}", "--num_images=3", f"--out={out}", "--steps=4", *flags]):
            return capsys.readouterr().err
        pictures = [np.asarray(Image.open(out / f"{i:04d}.png")) for i in range(3)]
        assert (out / "grid.png").is_file()
        return torch.from_numpy(np.stack(pictures)).movedim(-1, 1)

    return run


def test_every_option_of_the_sampler_reaches_the_model(tiny_model, sampled, support: Path) -> None:
    images, model = load_support(support, 8, 3), tiny_model(encoder=FEW_SHOT)
    plain = sampled(FEW_SHOT, f"--support={support}")
    for options in (
        {"sampler": "dpmpp_2m"},
        {"sampler": "ddim", "eta": 0.5},
        {"guidance_scale": 4.0},
        {"guidance_scale": 4.0, "guidance_interval": (5, 15)},
    ):
        flags = [f"--{name}={list(value) if isinstance(value, tuple) else value}" for name, value in options.items()]
        found = sampled(FEW_SHOT, f"--support={support}", *flags)
        assert torch.equal(found, to_uint8(model.sample(images, num_images=3, steps=4, **options))), options
        assert not torch.equal(found, plain), options


def test_a_class_conditional_model_takes_a_label(tiny_model, sampled, tmp_path: Path) -> None:
    found = [sampled(LABELS, f"--label={label}") for label in (0, 2)]
    for label, images in zip((0, 2), found, strict=True):
        assert torch.equal(images, to_uint8(tiny_model(encoder=LABELS).sample(label=label, num_images=3, steps=4)))
    assert not torch.equal(*found)
    with Image.open(tmp_path / "out" / "grid.png") as picture:
        assert picture.width == 8 * 52 + 4, "generated images alone"


def test_jax_takes_the_same_options(sampled) -> None:
    pytest.importorskip("jax", reason="install the extra `jax`")
    flags = ["--label=1", "--guidance_scale=3", "--guidance_interval=[0, 15]", "--sampler=dpmpp_2m"]
    torch_, jax_ = (sampled(LABELS | FEW_SHOT, *flags, f"--framework={name}") for name in ("torch", "jax"))
    assert (torch_.int() - jax_.int()).abs().max() <= 1


def test_an_unconditional_model_takes_nothing(tiny_model, sampled) -> None:
    assert torch.equal(sampled(NOTHING), to_uint8(tiny_model(encoder=NOTHING).sample(num_images=3, steps=4)))


@pytest.mark.parametrize(
    ("encoder", "flags", "says"),
    [
        (FEW_SHOT, [], "a support (encoder.architecture is 'set_vit'): give --support, a folder with 1 to 5 images"),
        (FEW_SHOT, ["support", "--label=1"], "--label is 1, but this model is not conditioned on a label"),
        (LABELS, [], "a label (encoder.architecture is 'class_label'): give --label, the number of a training class"),
        (LABELS, ["support", "--label=1"], "but this model is not conditioned on a support"),
        (LABELS, ["--label=3"], "--label is 3. There is no class 3: this model knows only its 3 training classes"),
        (NOTHING, ["support"], "is not conditioned on a support (encoder.architecture is 'none'): leave it out"),
        (NOTHING, ["--label=0"], "--label is 0, but this model is not conditioned on a label"),
        ({}, ["support", "--guidance_scale=2"], "this model was trained without a null context"),
        (FEW_SHOT, ["support", "--sampler=ddpm", "--eta=1"], "eta is 1.0, but it is DDIM's"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_said(sampled, support: Path, encoder: dict, flags: list[str], says: str) -> None:
    said = sampled(encoder, *(f"--support={support}" if flag == "support" else flag for flag in flags))
    assert isinstance(said, str) and said.startswith("ConfigError: ") and says in said
    assert "Traceback" not in said and not (support.parent / "out").exists()


def test_raw_weights_are_a_choice_that_is_told(trained, image_folder: Path, tmp_path: Path, capsys) -> None:
    support = tmp_path / "support"
    support.mkdir()
    Image.open(image_folder / "class00" / "0.png").save(support / "0.png")
    flags = [f"--ckpt_path={trained()}", f"--support={support}", "--num_images=2", "--steps=4"]
    saved = torch.load(trained(), weights_only=True)
    said = {}
    for name, raw in (("averaged", "--raw=false"), ("raw", "--raw")):
        assert main(["sample", *flags, raw, f"--out={tmp_path / name}"]) == 0
        said[name] = capsys.readouterr().out
        assert f"({name} weights of step {saved['global_step']})" in said[name]
    assert (tmp_path / "averaged" / "0000.png").read_bytes() != (tmp_path / "raw" / "0000.png").read_bytes()
    model = VFSDDPM.load_from_checkpoint(trained(), raw=True)
    assert all(torch.equal(value, saved["current_model_state"][name]) for name, value in model.state_dict().items())
    folder = [f"--pretrained={tmp_path}", f"--support={support}", "--raw=true", f"--out={tmp_path / 'none'}"]
    assert main(["sample", *folder]) == 1
    assert "--pretrained has one set" in capsys.readouterr().err
