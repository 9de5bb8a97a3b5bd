"""The built-in data set."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from lightning_vfs.core.errors import DataError
from lightning_vfs.data import ClassImages, GlyphSets
from lightning_vfs.data.glyphs import FACES, MIN_FACES


@pytest.fixture(scope="module")
def rendered(shared_cache: Path) -> str:
    """A cache that holds the glyphs."""
    GlyphSets(cache_dir=str(shared_cache)).prepare_data()
    return str(shared_cache)


@pytest.fixture(scope="module")
def glyphs(rendered: str) -> ClassImages:
    return GlyphSets(cache_dir=rendered).load()


def character(name: str) -> str:
    return name.partition(" ")[2]


def images_of(glyphs: ClassImages, wanted: str) -> np.ndarray:
    label = [character(name) for name in glyphs.class_names].index(wanted)
    return 255 - glyphs.images[glyphs.labels == label, 0].numpy().astype(int)


def test_it_delivers_sets_of_six_small_grey_images(rendered: str) -> None:
    batch = next(iter(GlyphSets(cache_dir=rendered, batch_size=4).train_dataloader()))
    assert batch["images"].shape == (4, 6, 1, 16, 16)
    assert batch["images"].min() == 0
    assert batch["images"].max() == 255


def test_the_classes_and_splits_are_known(rendered: str) -> None:
    assert GlyphSets(cache_dir=rendered).describe() == (
        "train 1,636 classes, 22,046 images; val 205 classes, 2,784 images; test 205 classes, 2,726 images; "
        "sets of 6 x 1 x 16 x 16"
    )


def test_classes_are_letters_numbers_and_symbols_of_many_faces(glyphs: ClassImages) -> None:
    assert len(glyphs) == 27_556
    assert glyphs.num_classes == 2_046
    assert {unicodedata.category(character(name))[0] for name in glyphs.class_names} == set("LNS")
    assert glyphs.counts.min() == MIN_FACES == 12
    assert glyphs.counts.max() == len(FACES) == 16
    assert "U+0041 A" in glyphs.class_names
    codes = [ord(character(name)) for name in glyphs.class_names]
    assert codes == sorted(codes)
    assert all(name == f"U+{code:04X} {chr(code)}" for name, code in zip(glyphs.class_names, codes, strict=True))


def test_of_characters_that_look_the_same_the_first_is_kept(glyphs: ClassImages) -> None:
    kept = {character(name) for name in glyphs.class_names}
    assert {"A", "a", "K", "Å", "Ω", "µ", "ä", "3", "c", "C", "Я", "λ"} <= kept
    # Greek and Cyrillic A, Cyrillic a, Kelvin, Angstrom, Ohm, Greek mu, Cyrillic a with diaeresis, Cyrillic ze
    assert not {"\u0391", "\u0410", "\u0430", "\u212a", "\u212b", "\u2126", "\u03bc", "\u04d3", "\u0417"} & kept


def test_no_two_classes_have_the_same_images(glyphs: ClassImages) -> None:
    drawn = {glyphs.images[glyphs.labels == label].numpy().tobytes() for label in range(glyphs.num_classes)}
    assert len(drawn) == glyphs.num_classes


def test_every_image_is_dark_ink_on_white_paper(glyphs: ClassImages) -> None:
    ink = (255 - glyphs.images.numpy().astype(int)).reshape(len(glyphs), -1)
    assert ink.sum(1).min() > 255
    assert np.median(ink) == 0
    assert np.median(ink.mean(1)) < 64


def test_nothing_is_cropped(glyphs: ClassImages) -> None:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FACES[0]}.ttf"
    font = ImageFont.truetype(str(path), 51, layout_engine=ImageFont.Layout.BASIC)  # four times the size in the images
    for wanted in "aAgjQW$\u01fa\u1e0c\u0390\u1f0f\u222b":
        whole = Image.new("L", (300, 300))
        ImageDraw.Draw(whole).text((100, 100), wanted, fill=255, font=font)
        assert images_of(glyphs, wanted)[0].sum() == pytest.approx(np.asarray(whole, int).sum() / 16, rel=0.03)
    tips = images_of(glyphs, "\u27f7")[0][:, [0, -1]]  # an arrow that is wider than an image, made smaller
    assert (tips.max(0) > 0).all() and (tips.max(0) < 100).all()


def test_size_tells_small_from_capital_letters_and_place_a_cedilla_from_an_apostrophe(glyphs: ClassImages) -> None:
    def rows(wanted: str) -> np.ndarray:
        return (images_of(glyphs, wanted).max(2) > 64).sum(1)

    for small, capital in ("cC", "oO", "sS", "vV", "wW", "xX", "zZ"):
        assert (rows(small) < rows(capital)).all()
    height = np.arange(16)

    def middle(wanted: str) -> np.ndarray:
        ink = images_of(glyphs, wanted).sum(2)
        return (ink * height).sum(1) / ink.sum(1)

    assert middle("\u02bc").max() < middle("\u00b8").min() - 4  # an apostrophe, a cedilla


def test_faces_of_a_class_are_alike_and_differ(glyphs: ClassImages) -> None:
    images = glyphs.float(range(len(glyphs))).flatten(1)
    means = torch.zeros(glyphs.num_classes, images.shape[1]).index_add_(0, torch.from_numpy(glyphs.labels), images)
    means /= torch.from_numpy(glyphs.counts)[:, None]
    sample = torch.arange(0, len(glyphs), 97)
    nearest = torch.cdist(images[sample], means).argmin(1)
    assert (nearest == torch.from_numpy(glyphs.labels)[sample]).float().mean() > 0.5
    different = [len(np.unique(images_of(glyphs, wanted), axis=0)) for wanted in "AaZg7"]
    assert min(different) >= 12


def test_glyphs_are_rendered_once(rendered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_vfs.data.glyphs._render_all", lambda *_: pytest.fail("rendered again"))
    GlyphSets(cache_dir=rendered, split_seed=3, set_size=4).setup()
    with pytest.raises(BaseException, match="rendered again"):
        GlyphSets(cache_dir=rendered, image_size=9).setup()  # a size that no other test has


def test_glyphs_are_the_same_every_time_and_with_more_faces(
    glyphs: ClassImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one face, which takes a sixteenth of the time."""
    (face,) = FACES[:1]
    monkeypatch.setattr("lightning_vfs.data.glyphs.FACES", (face,))
    monkeypatch.setattr("lightning_vfs.data.glyphs.MIN_FACES", 1)
    one, again = (GlyphSets(cache_dir=str(tmp_path / name)).load() for name in ("one", "again"))
    assert torch.equal(again.images, one.images)
    assert again.class_names == one.class_names
    first = {name: one.images[label] for label, name in enumerate(one.class_names)}
    for label, name in enumerate(glyphs.class_names):
        if glyphs.counts[label] == len(FACES) and name in first:
            assert torch.equal(glyphs.images[glyphs.labels == label][0], first[name])


def test_three_channels_are_the_same_grey(rendered: str) -> None:
    grey = GlyphSets(cache_dir=rendered).split("train").uint8([0, 500])
    colour = GlyphSets(cache_dir=rendered, channels=3).split("train").uint8([0, 500])
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))


def test_missing_fonts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    fonts = tmp_path / "fonts" / "ttf"
    shutil.copytree(Path(matplotlib.get_data_path()) / "fonts" / "ttf", fonts)
    (fonts / "DejaVuSerif.ttf").unlink()
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=f"1 of the 16 font files .* not in {fonts}: DejaVuSerif.ttf"):
        GlyphSets().load()
