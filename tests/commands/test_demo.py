"""What the page of `lightning-vfs demo` does, without the page; the page itself is in tests/browser."""

from __future__ import annotations

import shlex
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.commands.demo import is_loopback
from lightning_vfs.commands.demo_studio import Order, Studio, in_a_sentence, picture_of, result_of
from lightning_vfs.core.errors import ConfigError, VFSError
from lightning_vfs.data import load_support
from lightning_vfs.training import pretrained


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def model(tiny_model: Callable[..., VFSDDPM], tmp_path: Path) -> str:
    tiny_model(encoder={"context_dropout": 0.1}).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def studio(model: str) -> Studio:
    return Studio([model])


def test_images_appear_step_by_step_and_are_those_of_sample(studio: Studio, model: str, photos: list[Path]) -> None:
    order = Order(model, photos, shots=3, num_images=4, steps=20, guidance_scale=2.0, seed=5)
    frames = list(studio.frames(order))
    assert [frame.done for frame in frames] == list(range(1, 21))
    support = load_support(photos[:3], 8, 3)
    expected = VFSDDPM.from_pretrained(model).sample(support, 4, steps=20, guidance_scale=2.0, seed=5)
    assert frames[-1].images.equal(expected)
    assert result_of(order, frames[-1]) == "4 images in 20 steps, from the first 3 of 7 pictures"
    errors = [float((frame.images - expected).abs().mean()) for frame in frames]
    assert errors[0] > errors[-2] > 0 or errors[-2] == 0
    assert all(frame.images.abs().max() <= 1 for frame in frames)


def test_the_download_and_its_command_make_the_same_pictures(
    studio: Studio, model: str, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(model, photos, shots=2, num_images=3, steps=4, sampler="dpmpp_2m", guidance_scale=1.5, seed=9)
    with zipfile.ZipFile(studio.download(order, studio.images(order))) as archive:
        archive.extractall(tmp_path / "unpacked")
    monkeypatch.chdir(tmp_path / "unpacked")
    assert sorted(path.name for path in Path("support").iterdir()) == ["0.png", "1.png"]
    program, *arguments = shlex.split(Path("command.txt").read_text())
    assert program == "lightning-vfs" and main([*arguments, "--device", "cpu"]) == 0
    for name in ("0000.png", "0001.png", "0002.png"):
        assert np.array_equal(np.asarray(Image.open(name)), np.asarray(Image.open(Path("out", name))))


def test_a_comparison_has_copies_and_the_other_support(studio: Studio, model: str, photos: list[Path]) -> None:
    order = Order(model, photos, shots=2, num_images=3, steps=2)
    alone, said = studio.compare(order, [])
    both, more = studio.compare(order, photos[4:])
    assert "copies of them would be at 0" in said and "the same noise" not in said
    assert "the same noise gives images that differ by" in more
    assert both.height > alone.height and both.width == alone.width


def test_a_copier_is_at_no_distance(studio: Studio, model: str, photos: list[Path], monkeypatch) -> None:
    order = Order(model, photos, shots=2, num_images=2, steps=2)
    frame = studio.images(order)
    monkeypatch.setattr(studio, "images", lambda _: frame._replace(images=frame.support))
    assert "The images are 0.0 grey levels from the nearest picture" in studio.compare(order, [])[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"support": []}, "Drop at least one picture"),
        ({"num_images": 17}, "Images is 17; here it is at most 16"),
        ({"num_images": 0}, "Images is 0"),
        ({"steps": 251}, "Steps is 251; here it is at most 250"),
        ({"shots": 0}, "Shots is 0"),
        ({"seed": -1}, "Seed is -1"),
        ({"seed": 2**63}, "Seed is"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"sampler": "os.system"}, "The sampler is &#x27;os.system&#x27;; here it is ddpm"),
        ({"model": "/etc"}, "There is no model /etc here"),
        ({"model": "user/model"}, "There is no model user/model here"),
    ],
)
def test_an_order_that_cannot_be_is_a_sentence(
    changes: dict, said: str, studio: Studio, model: str, photos: list[Path]
) -> None:
    with pytest.raises((VFSError, ValueError)) as raised:
        studio.images(Order(**{"model": model, "support": photos[:1], "num_images": 1, "steps": 2} | changes))
    sentence = in_a_sentence(raised.value)
    assert said in sentence and "\n" not in sentence


def test_files_that_are_no_pictures(studio: Studio, model: str, photos: list[Path], tmp_path: Path) -> None:
    def said(file: Path, content: bytes) -> str:
        file.write_bytes(content)
        with pytest.raises(VFSError) as raised:
            studio.images(Order(model, [file]))
        return in_a_sentence(raised.value)

    assert "a.txt is not a picture" in said(tmp_path / "a.txt", b"text")
    assert "cut.png cannot be read" in said(tmp_path / "cut.png", photos[0].read_bytes()[:20])
    assert "fake.png cannot be read" in said(
        tmp_path / "fake.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    assert "10,000,001 bytes" in said(tmp_path / "large.png", b"0" * 10_000_001)
    assert "&lt;b&gt;.txt" in said(tmp_path / "<b>.txt", b"")
    Image.new("1", (8000, 8000)).save(tmp_path / "wide.png")
    with pytest.raises(VFSError, match="is 8000 x 8000; a picture may have 50,000,000 pixels"):
        studio.images(Order(model, [tmp_path / "wide.png"]))
    with pytest.raises(VFSError, match="51 pictures are too many"):
        studio.images(Order(model, photos[:1] * 51))


def test_what_nobody_foresaw_stays_on_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert "secret" not in in_a_sentence(RuntimeError("/secret/path"))
    assert "/secret/path" in capsys.readouterr().err


def test_a_visitor_who_leaves_ends_the_generation(studio: Studio, model: str, photos: list[Path]) -> None:
    threads = threading.active_count()
    frames = studio.frames(Order(model, photos[:1], num_images=2, steps=20))
    next(frames)
    frames.close()
    for thread in threading.enumerate():
        if thread.name.startswith("Thread-"):
            thread.join(10)
    assert threading.active_count() == threads


def test_models_of_every_kind(
    model: str, tiny_model: Callable[..., VFSDDPM], photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(encoder={"architecture": "none"}).save_pretrained(tmp_path / "none")
    tiny_model(encoder={"architecture": "class_label", "num_classes": 3}).save_pretrained(tmp_path / "label")
    boxed = tmp_path / "pretrained" / "glyphs"
    tiny_model().save_pretrained(boxed)
    (boxed / "examples" / "0").mkdir(parents=True)
    shutil.copy(photos[0], boxed / "examples" / "0" / "0.png")
    monkeypatch.setattr(pretrained, "BOXED", boxed.parent)
    monkeypatch.setattr("lightning_vfs.commands.demo_studio.BOXED", boxed.parent)
    studio = Studio(["glyphs"], any_model=True)
    (files,) = studio.examples().values()
    assert studio.images(Order("glyphs", files, num_images=1, steps=2)).images.shape == (1, 3, 8, 8)
    assert studio.images(Order(str(tmp_path / "none"), num_images=1, steps=2)).support is None
    with pytest.raises(ConfigError, match="takes a label, not pictures"):
        studio.images(Order(str(tmp_path / "label"), num_images=1, steps=2))
    with pytest.raises(VFSError, match="There is no folder"):
        studio.images(Order(str(tmp_path / "nothing"), num_images=1, steps=2))
    assert len(studio._loaded) == 3


def test_images_that_are_not_finite_are_an_error(tiny_model: Callable[..., VFSDDPM], photos, tmp_path: Path) -> None:
    broken = tiny_model()
    torch.nn.init.constant_(next(broken.denoiser.parameters()), torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(VFSError, match="The images are not finite"):
        Studio([str(tmp_path / "broken")]).images(Order(str(tmp_path / "broken"), photos[:1], num_images=1, steps=2))


def test_supports_of_different_sizes_make_one_picture() -> None:
    picture = picture_of(
        [(torch.zeros(1, 1, 8, 8), torch.zeros(2, 1, 8, 8)), (torch.zeros(3, 1, 8, 8), torch.zeros(2, 1, 8, 8))]
    )
    assert picture.mode == "RGB" and picture.width > picture.height


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("192.168.0.2", False), ("a", False)],
)
def test_who_can_open_the_page(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_without_gradio_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "lightning_vfs.commands.demo_app", raising=False)
    assert main(["demo"]) == 1
    assert "pip install 'lightning_vfs[demo]'" in capsys.readouterr().err
