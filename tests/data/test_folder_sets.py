"""Images in folders."""

from __future__ import annotations

import os
import re
import shutil
import tracemalloc
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.data import FolderSets, load_support
from lightning_vfs.data.cache import DamagedCacheWarning
from lightning_vfs.data.decode import PILLOW, decode, decode_all, extensions
from lightning_vfs.data.decoded import ImageFiles
from lightning_vfs.data.image_sets import UnreadableImagesWarning
from lightning_vfs.data.layout import find_classes
from lightning_vfs.data.module import SmallClassWarning
from tests.processes import run_together

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
    root = image_folder({f"{split}/c/{j}.png": j for split in ("train", "vald", "test") for j in range(2)})
    refused(root, f"{root} holds train and, with images in them, vald, which name no split (splits are named train by")
    twice = image_folder({f"{split}/c/{j}.png": j for split in ("train", "Training") for j in range(2)}, name="twice")
    refused(twice, f"{twice} holds Training and train, which both name the split train: keep one.")
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
    assert message.startswith("2 of 30 images cannot be read (listed in ")
    listed = Path(re.findall(r"listed in (.*?)\)", message)[0]).read_text().splitlines()
    assert [line.split(" cannot be read")[0] for line in listed] == [str(root / f"c{i}" / "1.png") for i in (1, 2)]
    assert f"{root / 'c1' / '1.png'} cannot be read as an image: " in message
    assert f"{root / 'c2' / '1.png'} cannot be read as an image: cannot identify image file" in message


def test_a_link_to_nowhere_is_named(image_folder: Write) -> None:
    root = ten_classes(image_folder)
    (root / "c1" / "9.png").symlink_to(root / "gone.png")
    refused(root, f"{root / 'c1' / '9.png'} cannot be read as an image: [Errno 2] No such file or directory")


# Cache


def test_images_are_decoded_once(image_folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ten_classes(image_folder)
    sets(root).prepare_data()
    monkeypatch.setattr("lightning_vfs.data.decoded.decode_all", lambda *_: pytest.fail("decoded again"))
    assert sets(root, split_seed=1, set_size=3).split("train").num_classes == 8


@pytest.mark.parametrize(
    "change", ["pixels", "pixels, not time or size", "size", "channels", "new", "renamed", "class"]
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
    else:
        arguments = {"size": {"image_size": 4}, "channels": {"channels": 3}}[change]
    images = sets(root, **arguments).load()
    caches = 1 if change == "pixels, not time or size" else 2
    assert len(list(cache_folder.glob("folders-*.safetensors"))) == caches
    if change.startswith("pixels"):
        assert images.uint8(0).unique().tolist() == [200]  # type: ignore[union-attr]


def decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    decoded = []

    def noting(path: Path, *arguments: int) -> np.ndarray:
        decoded.append(path.name)
        return decode(path, *arguments)

    monkeypatch.setattr("lightning_vfs.data.decode.decode", noting)
    return decoded


def test_what_does_not_change_the_content_decodes_nothing(
    image_folder: Write, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ten_classes(image_folder)
    sets(root).setup()
    before = (root / "c0" / "0.png").stat().st_ctime_ns
    decoded = decoding(monkeypatch)
    for file in root.rglob("*.png"):
        file.chmod(0o600)
    assert (root / "c0" / "0.png").stat().st_ctime_ns > before
    read: list[int] = []
    digests = ImageFiles.digests
    monkeypatch.setattr(ImageFiles, "digests", lambda self, rows: read.extend(rows) or digests(self, rows))
    for _ in range(2):
        sets(root).setup()
    assert decoded == []
    assert read == list(range(30)), "read once, to compare their content"
    copy = shutil.copytree(root, cache_folder.parent / "copy")  # with their times of modification
    shutil.rmtree(root)
    copy.rename(root)
    sets(root).setup()
    assert decoded == [] and len(list(cache_folder.glob("folders-*.safetensors"))) == 1


def test_memory_is_that_of_a_chunk_whatever_the_number_of_images(
    image_folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder({f"c{i}/{j}.png": i for i in range(10) for j in range(6)})
    sets(root).setup()  # what is imported on the way is no memory of images
    monkeypatch.setattr("lightning_vfs.data.decoded.CHUNK", 4)
    tracemalloc.start()
    try:
        images = sets(root, image_size=128, channels=3).load()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.images.nbytes > 2_900_000  # type: ignore[union-attr]
    assert most < 1_000_000


def test_the_file_system_is_asked_once_for_every_image(image_folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ten_classes(image_folder)
    sets(root).setup()
    asked: list[str] = []
    of_path, of_name = Path.stat, os.stat
    monkeypatch.setattr(Path, "stat", lambda self, **_: asked.append(self.name) or of_path(self))
    monkeypatch.setattr(os, "stat", lambda path, **_: asked.append(os.path.basename(path)) or of_name(path))
    data = sets(root)
    data.setup()
    data.identity()
    assert not [name for name in asked if name.endswith(".png")], "beyond what listing the folder asks"


def test_pillows_patch_level_is_no_part_of_a_key() -> None:
    assert PILLOW.count(".") == 1 and PIL.__version__.startswith(f"{PILLOW}.")


def test_a_file_that_becomes_readable_is_decoded(image_folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ten_classes(image_folder)
    file, whole = root / "c1" / "1.png", (root / "c1" / "1.png").read_bytes()
    before = file.stat()
    file.write_bytes(bytes(len(whole)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(root, "1 of 30 images cannot be read")
    file.write_bytes(whole)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    decoded = decoding(monkeypatch)
    assert sets(root).load().uint8(4).unique().tolist() == [11]  # type: ignore[union-attr]
    assert decoded == ["1.png"]


def test_an_older_cache_is_decoded_again_and_never_misread(
    image_folder: Write, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without checksums, under a name that this version could look for."""
    root = ten_classes(image_folder)
    sets(root).setup()
    (file,) = cache_folder.glob("folders-*.safetensors")
    with safe_open(file, "np") as stored:
        tensors = {name: stored.get_tensor(name) for name in ("images", "status", "fingerprints")}
    tensors["images"] = 255 - tensors["images"]
    save_file(tensors, file)
    with pytest.warns(DamagedCacheWarning, match="it states no checksum"):
        assert sets(root).load().uint8(0).unique().tolist() == [0]  # type: ignore[union-attr]


def test_a_cache_of_another_number_of_images_gives_what_it_has(
    image_folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ten_classes(image_folder)
    sets(root).setup()
    (root / "c0" / "1.png").unlink()
    Image.fromarray(np.full((8, 8), 222, np.uint8)).save(root / "c5" / "0a.png")
    decoded = decoding(monkeypatch)
    monkeypatch.setattr("lightning_vfs.data.decoded.CHUNK", 7)
    images = sets(root).load()
    assert decoded == ["0a.png"]
    values = [int(images.uint8(i).unique()) for i in range(30)]
    numbers = [10 * i + j for i in range(10) for j in range(3) if (i, j) != (0, 1)]
    numbers.insert(numbers.index(50) + 1, 222)  # c5/0.png, then c5/0a.png
    assert values == numbers


def test_only_files_that_were_repaired_are_decoded_again(image_folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ten_classes(image_folder)
    broken = root / "c1" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:20])
    refused(root, "1 of 30 images cannot be read")
    broken.write_bytes(whole)
    decoded = decoding(monkeypatch)
    images = sets(root).load()
    assert decoded == ["1.png"]
    assert [int(images.uint8(i).unique()) for i in range(30)] == [10 * i + j for i in range(10) for j in range(3)]


def test_an_interrupted_decoding_goes_on_where_it_was(image_folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ten_classes(image_folder)
    monkeypatch.setattr("lightning_vfs.data.decoded.CHUNK", 4)
    real, calls = decode_all, []

    def stopping(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr("lightning_vfs.data.decoded.decode_all", stopping)
    with pytest.raises(KeyboardInterrupt):
        sets(root).load()
    decoded = decoding(monkeypatch)
    images = sets(root).load()
    assert len(decoded) == 30 - 12
    assert [int(images.uint8(i).unique()) for i in range(30)] == [10 * i + j for i in range(10) for j in range(3)]


def test_jobs_that_start_together_wait_for_one_that_decodes(image_folder: Write, tmp_path: Path) -> None:
    root = ten_classes(image_folder)
    (tmp_path / "job.py").write_text(
        "import sys; from lightning_vfs.data import FolderSets\n"
        "data = FolderSets(sys.argv[1], set_size=2, image_size=8, channels=1)\n"
        "print(*(int(x.unique()) for x in data.load().images))"
    )
    jobs = run_together([[tmp_path / "job.py", root]] * 2, [{}] * 2)
    expected = " ".join(str(10 * i + j) for i in range(10) for j in range(3))
    assert [job.stdout.strip() for job in jobs] == [expected, expected], jobs[0].stderr
    assert sum("Decoding 30 images" in job.stderr for job in jobs) <= 1


def test_a_cache_that_cannot_be_written_is_found_before_anything_is_decoded(
    image_folder: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ten_classes(image_folder)
    (tmp_path / "file").touch()
    decoded = decoding(monkeypatch)
    refused(root, f"cannot be written to the cache {tmp_path / 'file'}", cache_dir=str(tmp_path / "file"))

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    refused(root, "No space left on device. They take 1.9 KiB, and ")
    assert decoded == []


# What a folder holds


def test_a_link_to_a_folder_above_adds_no_image(image_folder: Write) -> None:
    root = ten_classes(image_folder)
    (root / "c0" / "self").symlink_to(root / "c0")
    (root / "c1" / "again.png").symlink_to(root / "c1" / "0.png")
    data = sets(root)
    data.setup()
    assert sum(len(data.split(split)) for split in ("train", "val", "test")) == 30
    assert "Passed over as links to files or folders that count already: 2." in data.describe()


def test_links_to_images_elsewhere_count(image_folder: Write, tmp_path: Path) -> None:
    pool = ten_classes(image_folder)
    for file in pool.rglob("*.png"):
        link = tmp_path / "linked" / file.relative_to(pool)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    assert len(sets(tmp_path / "linked").load()) == 30


def test_classes_of_another_level_are_asked_for(image_folder: Write) -> None:
    files = {f"{a}/{c}/{j}.png": j for a in ("Greek", "Latin") for c in ("a", "b", "c") for j in range(2)}
    root = image_folder(files | {"Greek/stray.png": 1})
    (root / "Greek" / "stray.png").unlink()
    refused(root, "Set --data.class_level to 1 for 2 classes such as Greek, or 2 for 6 classes such as Greek/a.")
    assert sets(root, class_level=1).load().class_names == ("Greek", "Latin")
    images = sets(root, class_level=2).load()
    assert images.class_names == ("Greek/a", "Greek/b", "Greek/c", "Latin/a", "Latin/b", "Latin/c")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "Greek" / "stray.png")
    data = sets(root, class_level=2)
    assert "Passed over as images outside of the folders of classes: 1." in data.describe()
    refused(root, "There are no class folders 4 levels below", class_level=4)


def test_a_folder_of_classes_among_classes_is_named(image_folder: Write) -> None:
    files = {f"c{i}/{j}.png": 1 for i in range(9) for j in range(3)} | {f"more/d{i}/{i}.png": 1 for i in range(3)}
    root = image_folder(files)
    said = sets(root).describe()
    assert (
        "each taken for one class: 1 of 10 (more). If they are classes themselves, put them beside the others" in said
    )
    assert "each taken for one class" not in sets(root, class_level=1).describe(), "it was asked for"


def test_one_folder_within_each_class_is_no_question(image_folder: Write) -> None:
    root = image_folder({f"c{i}/images/{j}.png": j for i in range(10) for j in range(2)})
    assert sets(root).load().num_classes == 10


@pytest.mark.parametrize("names", [("Training", "Validation", "Test"), ("TRAIN", "Valid", "testing")])
def test_splits_are_known_by_other_names(image_folder: Write, names: tuple[str, str, str]) -> None:
    root = image_folder({f"{name}/{name}{i}/{j}.png": j for name in names for i in range(3) for j in range(2)})
    data = sets(root)
    for split, name in zip(("train", "val", "test"), names, strict=True):
        assert data.split(split).class_names == tuple(f"{name}{i}" for i in range(3))  # type: ignore[arg-type]


def test_other_files_are_counted_by_kind(image_folder: Write) -> None:
    root = ten_classes(image_folder)
    for name in ("x.h5", "x.mpg", "x.eps", "notes.TXT", "README", "photo.heic"):
        (root / "c0" / name).write_bytes(b"no image")
    data = sets(root)
    described = data.describe()
    readable = ".heic" in extensions()
    assert "Passed over as not images: " in described
    for kind in ("1 .h5", "1 .mpg", "1 .eps", "1 .txt", "1 without suffix"):
        assert kind in described
    assert ("pip install pillow-heif" in described) != readable


def test_names_may_have_any_bytes(image_folder: Write) -> None:
    root = ten_classes(image_folder)
    strange = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(strange)
    for j in range(2):
        os.rename(os.fsencode(root / "c9" / f"{j}.png"), strange + b"/\xff%d.png" % j)
    data = sets(root, split_fractions=(1, 0, 0))
    with pytest.warns(UserWarning, match=r"left out \(images\): c9 \(1\)"):
        images = data.split("train")
    assert "caf\\xe9" in images.class_names and all(name.isprintable() for name in images.class_names)
    label = images.class_names.index("caf\\xe9")
    assert images.name_of(int(images.offsets[label])) == "caf\\xe9/\\xff0.png"


def test_a_split_does_not_depend_on_how_letters_are_stored(image_folder: Write) -> None:
    names = [f"{letter}{i}" for letter in "\u00e9\u00e4\u00f1" for i in range(6)]
    splits = []
    for form in ("NFC", "NFD"):
        folders = [unicodedata.normalize(form, name) for name in names]
        root = image_folder({f"{name}/{j}.png": j for name in folders for j in range(2)}, name=form)
        data = sets(root, split_fractions=(0.5, 0.25, 0.25))
        splits.append([data.split(split).class_names for split in ("train", "val", "test")])  # type: ignore[arg-type]
    assert splits[0] == splits[1]


def test_unreadable_images_may_be_left_out(image_folder: Write) -> None:
    root = ten_classes(image_folder)
    for i in range(3):
        (root / f"c{i}" / "1.png").write_bytes(b"\x89PNG but not")
    with pytest.warns(UnreadableImagesWarning, match="3 of 30 images cannot be read, and are left out"):
        images = sets(root, on_unreadable="skip").load()
    assert images.counts.tolist() == [2, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    assert images.uint8([0, 1])[:, 0, 0, 0].tolist() == [0, 2]
    assert [images.name_of(i) for i in range(2)] == ["c0/0.png", "c0/2.png"]
    refused(root, "3 of 30 images cannot be read")
    with pytest.raises(ConfigError, match="on_unreadable is 'ignore'; allowed: 'error', 'skip'"):
        sets(root, on_unreadable="ignore")


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


def test_pipes_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "0.png")
    os.mkfifo(tmp_path / "a" / "1.png")
    layout = find_classes(tmp_path)
    assert [len(found.images) for found in layout.classes] == [1]
    assert layout.remarks() == ["Passed over as not images: 1 pipe or device."]
