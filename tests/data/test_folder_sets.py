"""Images in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_vfs.core.errors import DataError
from lightning_vfs.data import FolderSets, load_support
from lightning_vfs.data.decode import decode, extensions
from lightning_vfs.data.module import SmallClassWarning

Write = Callable[..., Path]


def sets(root: Path, **arguments: object) -> FolderSets:
    return FolderSets(str(root), **({"set_size": 2, "image_size": 8, "channels": 1} | arguments))


def refused(root: Path, message: str, **arguments: object) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        sets(root, **arguments).setup()


def ten_classes(write: Write, **more: int) -> Path:
    files = {f"c{i}/{j}.png": 10 * i + j for i in range(10) for j in range(3)}
    return write(files | {name.replace("__", "/") + ".png": value for name, value in more.items()})


# Folders


def test_every_folder_is_a_class_and_its_images_keep_their_pixels(image_folder: Write) -> None:
    data = sets(ten_classes(image_folder))
    assert data.describe().startswith("train 8 classes, 24 images; val 1 classes, 3 images; test 1 classes, 3 images")
    for split in ("train", "val", "test"):
        images = data.split(split)  # type: ignore[arg-type]
        for label, name in enumerate(images.class_names):
            values = images.uint8(images.offsets[label] + np.arange(3))
            assert (values == 10 * int(name[1:]) + torch.arange(3)[:, None, None, None]).all()


def test_other_and_hidden_files_are_ignored_and_deeper_folders_belong_to_their_class(image_folder: Write) -> None:
    root = ten_classes(image_folder, c3__more__9=99, c3__more__deep__8=98, loose=5)
    (root / "c0" / "notes.txt").write_text("no image")
    (root / "c0" / ".hidden.png").write_text("no image")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "1.png").write_text("no image")
    (root / "c1" / ".thumbnails").mkdir()
    (root / "c1" / ".thumbnails" / "1.png").write_text("no image")
    images = sets(root).load()
    assert images.class_names == tuple(f"c{i}" for i in range(10))  # type: ignore[union-attr]
    assert images.counts.tolist() == [3, 3, 3, 5, 3, 3, 3, 3, 3, 3]  # type: ignore[union-attr]


def test_images_are_called_by_their_paths_below_the_root(image_folder: Write) -> None:
    root = image_folder(
        {f"{split}/{name}/{j}.png": j for split, name in (("train", "b"), ("val", "a")) for j in (1, 2)}
    )
    for data in (sets(root, split_fractions=(0.5, 0.5, 0)), sets(root, split_fractions=(0.5, 0.5, 0))):  # then cached
        for split, name in (("train", "b"), ("val", "a")):
            images = data.split(split)  # type: ignore[arg-type]
            assert [images.name_of(i) for i in range(2)] == [f"{split}/{name}/1.png", f"{split}/{name}/2.png"]
            assert images.uint8([0, 1])[:, 0, 0, 0].tolist() == [1, 2]


def test_explicit_splits_are_kept(image_folder: Write) -> None:
    splits = ("train", "val", "test")
    root = image_folder({f"{split}/{split}{i}/{j}.png": j for split in splits for i in range(3) for j in range(2)})
    (root / "docs").mkdir()
    data = sets(root)
    for split in splits:
        assert data.split(split).class_names == (f"{split}0", f"{split}1", f"{split}2")  # type: ignore[arg-type]


def test_a_missing_split_is_taken_from_train(image_folder: Write) -> None:
    root = image_folder(
        {f"train/c{i:02}/{j}.png": i for i in range(18) for j in range(2)}
        | {f"test/d{i}/{j}.png": i for i in range(2) for j in range(2)}
    )
    data = sets(root)
    assert data.split("test").class_names == ("d0", "d1")
    train, val = data.split("train").class_names, data.split("val").class_names
    assert (len(train), len(val)) == (16, 2)
    assert sorted(train + val) == [f"c{i:02}" for i in range(18)]
    assert sets(root, split_seed=0).split("val").class_names == val != sets(root, split_seed=3).split("val").class_names


def test_train_may_be_a_class_among_others(image_folder: Write) -> None:
    root = image_folder({f"{name}/{j}.png": j for name in ("bus", "car", "train", "tram") for j in range(2)})
    data = sets(root, split_fractions=(0.5, 0.25, 0.25))
    assert sum(data.split(s).num_classes for s in ("train", "val", "test")) == 4  # type: ignore[arg-type]


def test_a_class_in_two_splits_is_refused(image_folder: Write) -> None:
    root = image_folder({f"{split}/cat/{j}.png": j for split in ("train", "val", "test") for j in range(2)})
    refused(root, "class cat is in two splits, train and val")


def test_folders_beside_train_that_look_like_splits_are_refused(image_folder: Write) -> None:
    root = image_folder({f"{split}/c/{j}.png": j for split in ("train", "valid", "test") for j in range(2)})
    refused(root, "Beside train, " + str(root) + " holds valid with images in them, but splits are called train, val")
    without = image_folder({f"{split}/c/{j}.png": j for split in ("val", "test") for j in range(2)}, name="other")
    refused(without, f"{without} holds test, val, but no train")


def test_a_wrong_path_is_answered_with_what_is_near_it(image_folder: Write, tmp_path: Path) -> None:
    root = ten_classes(image_folder)
    refused(tmp_path / "imagse", f"There is no {tmp_path / 'imagse'}. Did you mean {root}?")
    refused(root / "x" / "y", f"There is no {root / 'x' / 'y'}: {root} has no x; it holds c0, c1, c2")
    refused(root / "c0" / "0.png", f"{root / 'c0' / '0.png'} is a file. Give the folder that holds one folder for each")


def test_a_folder_without_class_folders_or_images_is_described(image_folder: Write, tmp_path: Path) -> None:
    flat = image_folder({f"{i}.png": i for i in range(3)}, name="flat")
    refused(
        flat, f"There are no class folders in {flat}: it holds 3 images. Put the images of each class into a folder"
    )
    split = image_folder({"train/a/1.png": 1, "train/a/2.png": 2, "val/1.png": 1}, name="split")
    refused(split, f"There are no class folders in {split / 'val'}: it holds 1 images")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, f"There are no class folders in {empty}: it holds nothing")
    arrays = tmp_path / "arrays"
    (arrays / "a").mkdir(parents=True)
    (arrays / "a" / "x.npy").touch()
    refused(arrays, f"There is no image in the 1 class folders of {arrays}: a holds 1 .npy files")


def test_small_classes_are_named_and_empty_ones_with_them(image_folder: Write) -> None:
    root = ten_classes(image_folder, lone__1=1)
    (root / "none").mkdir()
    with pytest.warns(SmallClassWarning, match=r"2 of 12 classes .* lone \(1\), none \(0\)"):
        assert sets(root).describe().startswith("train 8 classes, 24 images; val 1 classes, 3 images; test 1 classes")


def test_unreadable_images_are_named_together(image_folder: Write) -> None:
    root = ten_classes(image_folder)
    whole = (root / "c1" / "0.png").read_bytes()
    (root / "c1" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "c2" / "1.png").write_text("no image at all")
    with pytest.raises(DataError) as caught:
        sets(root).setup()
    message = str(caught.value)
    assert message.startswith("2 of 30 images cannot be read. Replace or remove:\n")
    assert f"{root / 'c1' / '1.png'} cannot be read as an image: " in message
    assert f"{root / 'c2' / '1.png'} cannot be read as an image: cannot identify image file" in message


def test_a_link_to_nowhere_is_named(image_folder: Write) -> None:
    root = ten_classes(image_folder)
    (root / "c1" / "9.png").symlink_to(root / "gone.png")
    refused(root, f"{root / 'c1' / '9.png'} cannot be read: No such file or directory. Replace or remove it.")


# Cache


def test_images_are_decoded_once(image_folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ten_classes(image_folder)
    sets(root).prepare_data()
    monkeypatch.setattr("lightning_vfs.data.folders.decode_all", lambda *_: pytest.fail("decoded again"))
    assert sets(root, split_seed=1, set_size=3).split("train").num_classes == 8


@pytest.mark.parametrize(
    "change", ["pixels", "pixels, not time or size", "size", "channels", "new", "renamed", "class", "empty class"]
)
def test_what_changes_the_pixels_is_decoded_anew(image_folder: Write, cache_folder: Path, change: str) -> None:
    root = ten_classes(image_folder)
    file = root / "c0" / "0.bmp"
    Image.fromarray(np.full((8, 8), 100, np.uint8)).save(file)
    sets(root).setup()
    arguments: dict[str, object] = {}
    if change.startswith("pixels"):
        before = file.stat()
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(file)
        if change == "pixels, not time or size":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert file.stat().st_size == before.st_size
    elif change == "new":
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(root / "c0" / "3.png")
    elif change == "renamed":
        file.rename(root / "c0" / "9.bmp")
    elif change == "class":
        (root / "c0").rename(root / "d0")
    elif change == "empty class":
        (root / "b").mkdir()
    else:
        arguments = {"size": {"image_size": 4}, "channels": {"channels": 3}}[change]
    images = sets(root, **arguments).load()
    assert len(list(cache_folder.glob("folders-*.safetensors"))) == 2
    if change.startswith("pixels"):
        assert images.uint8(0).unique().tolist() == [200]  # type: ignore[union-attr]


# Pixels


def square(image: Image.Image, path: Path, channels: int = 3, **saving: object) -> np.ndarray:
    image.save(path, **saving)
    return decode(path, image.width, channels)


GREY = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


def test_grey_and_rgb_files_keep_their_pixels(tmp_path: Path) -> None:
    assert np.array_equal(square(Image.fromarray(GREY), tmp_path / "g.png", 1), GREY[None])
    assert np.array_equal(square(Image.fromarray(GREY), tmp_path / "g.png", 3), np.stack([GREY] * 3))
    assert np.array_equal(square(Image.fromarray(COLOUR), tmp_path / "c.png", 3), COLOUR.transpose(2, 0, 1))
    luma = square(Image.fromarray(COLOUR), tmp_path / "c.png", 1)[0]
    assert np.abs(luma - COLOUR @ [0.299, 0.587, 0.114]).max() <= 1


def test_transparent_pixels_show_white(tmp_path: Path) -> None:
    alpha = np.where(np.arange(16).reshape(4, 4) % 2, 255, 0).astype(np.uint8)
    expected = np.where(alpha[..., None] > 0, COLOUR, 255).transpose(2, 0, 1)
    rgba = Image.fromarray(np.dstack([COLOUR, alpha]))
    assert np.array_equal(square(rgba, tmp_path / "a.png"), expected)
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    assert np.array_equal(square(grey, tmp_path / "la.png", 1)[0], np.where(alpha > 0, GREY, 255))


def test_palettes_are_resolved_with_their_transparent_colour(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    pixels = square(palette, tmp_path / "p.png").transpose(1, 2, 0).tolist()
    assert pixels == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 0, 0]]]
    pixels = square(palette, tmp_path / "t.png", transparency=0).transpose(1, 2, 0).tolist()
    assert pixels == [[[255, 255, 255], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    for name in ("w.png", "w.tif"):
        assert np.array_equal(square(wide, tmp_path / name, 1)[0], GREY)
    assert np.array_equal(square(wide, tmp_path / "w.png", 3), np.stack([GREY] * 3))


def test_cmyk_and_two_level_images_are_converted(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert square(cmyk, tmp_path / "c.tif")[:, 0, 0].tolist() == [255, 0, 0]
    two = Image.fromarray(GREY > 127)
    assert np.array_equal(square(two, tmp_path / "b.png", 1)[0], np.where(GREY > 127, 255, 0))


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"f.tif cannot be read as an image: it holds floating-point numbers"):
        square(Image.fromarray(GREY.astype(np.float32)), tmp_path / "f.tif")


def test_the_exif_orientation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    pixels = square(Image.fromarray(GREY), tmp_path / "e.png", 1, exif=exif)
    assert np.array_equal(pixels[0], np.rot90(GREY, -1))


def test_the_centre_square_is_kept(tmp_path: Path) -> None:
    wide = np.arange(8 * 21, dtype=np.uint8).reshape(8, 21)
    Image.fromarray(wide).save(tmp_path / "w.png")
    Image.fromarray(wide.T.copy()).save(tmp_path / "t.png")
    assert np.array_equal(decode(tmp_path / "w.png", 8, 1)[0], wide[:, 6:14])
    assert np.array_equal(decode(tmp_path / "t.png", 8, 1)[0], wide.T[6:14])


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    stripes = np.tile(np.array([[0, 255]], np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "s.png")
    assert np.abs(decode(tmp_path / "s.png", 8, 1).astype(int) - 127).max() < 20


def test_every_format_of_torchvision_is_read() -> None:
    assert set(IMG_EXTENSIONS) <= extensions()
    assert ".pdf" not in extensions()


# Supports


def test_a_support_is_a_folders_images_by_name(image_folder: Write) -> None:
    root = image_folder({"a/2.png": 255, "a/10.png": 0, "a/1.jpg": 51, "a/deeper/1.png": 7})
    (root / "a" / "notes.txt").write_text("no image")
    support = load_support(root / "a", image_size=4, channels=3)
    assert support.shape == (3, 3, 4, 4)
    assert support.dtype == torch.float32
    assert torch.allclose(support[:, 0, 0, 0], torch.tensor([51 / 127.5 - 1, -1, 1]), atol=1e-6)


def test_a_support_may_be_files_in_the_order_given(image_folder: Write) -> None:
    root = image_folder({"a/1.png": 255, "a/2.png": 0})
    assert load_support([root / "a/2.png", str(root / "a/1.png")], 4, 1)[:, 0, 0, 0].tolist() == [-1, 1]
    assert load_support(str(root / "a/2.png"), 4, 1).shape == (1, 1, 4, 4)


def test_a_support_is_decoded_as_training_images_are(image_folder: Write) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    root = image_folder({f"c{i}/{j}.png": colours for i in range(3) for j in range(2)})
    images = sets(root, image_size=16, channels=3).split("train")
    assert torch.equal(load_support(root / "c0", 16, 3)[0], images.float(0))


def test_a_support_that_is_not_there_is_explained(image_folder: Write) -> None:
    root = ten_classes(image_folder)
    with pytest.raises(DataError, match=re.escape(f"There is no {root / 'c12'}. Did you mean")):
        load_support(root / "c12", 8, 1)
    with pytest.raises(DataError, match=re.escape(f"no image in {root}: it holds 10 folders. Give the folder of one")):
        load_support(root, 8, 1)
    with pytest.raises(DataError, match="none was given"):
        load_support([], 8, 1)
    (root / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match=re.escape(f"{root / 'broken.png'} cannot be read as an image")):
        load_support([root / "broken.png"], 8, 1)
    with pytest.raises(DataError, match=re.escape(f"{root / 'c0'} cannot be read as an image")):
        load_support([root / "c0"], 8, 1)
