"""Data sets from the files in which they were published."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import Flowers102

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import file_sha256
from lightning_vfs.data import (
    CelebASets,
    CIFAR100Sets,
    CUBSets,
    Flowers102Sets,
    MiniImageNetSets,
    OmniglotSets,
    SetDataModule,
)
from lightning_vfs.data.official import OfficialFile, OfficialSets

from .official import cifar100, csv_of, jpeg, omniglot, png, write_folder, write_tar, write_zip

SMALL: dict[str, Any] = {"set_size": 2, "image_size": 8}
NO_VAL = (1.0, 0.0, 0.0)


def sizes(data: OfficialSets) -> dict[str | None, int]:
    """Classes of every split, without decoding an image."""
    return Counter(found.split for found in data.classes())


def classes(data: SetDataModule) -> dict[str, tuple[str, ...]]:
    return {name: data.split(name).class_names for name in ("train", "val", "test") if data.has_split(name)}


def greys(data: SetDataModule, split: Any, name: str) -> list[int]:
    """Values of the images of a class, which have one each."""
    images = data.split(split)
    label = images.class_names.index(name)
    first = images.offsets[label]
    return [int(images.uint8(i).float().mean()) for i in range(first, first + images.counts[label])]


def refused(data: OfficialSets, *messages: str) -> None:
    with pytest.raises(DataError) as caught:
        data.setup()
    for message in messages:
        assert message in str(caught.value)


# -- Omniglot ---------------------------------------------------------------------------------------------------------


def write_omniglot(root: Path, *names: str, **options: Any) -> Path:
    for name in names:
        write_zip(root / f"images_{name}.zip", omniglot(name, **options))
    return root


def test_omniglot_trains_on_background_and_tests_on_evaluation(tmp_path: Path) -> None:
    write_zip(tmp_path / "images_background.zip", omniglot("background", {"Greek": 2, "Latin": 3}))
    write_zip(tmp_path / "images_evaluation.zip", omniglot("evaluation", {"ULOG": 2}))
    data = OmniglotSets(str(tmp_path), split_fractions=NO_VAL, **SMALL)
    assert classes(data) == {
        "train": (*(f"Greek/character0{i}" for i in (1, 2)), *(f"Latin/character0{i}" for i in (1, 2, 3))),
        "test": ("ULOG/character01", "ULOG/character02"),
    }
    assert greys(data, "train", "Latin/character03") == [30, 31]
    assert data.split("test").name_of(0) == "images_evaluation/ULOG/character01/0002_01.png"
    assert "images_background.zip holds 5 characters, 10 drawings; the official set has 964 characters" in (
        data.describe()
    )
    with_val = OmniglotSets(str(tmp_path), split_fractions=(0.5, 0.25, 0.25), **SMALL)
    assert [with_val.split(name).num_classes for name in ("train", "val", "test")] == [3, 2, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", ["", "omniglot-py"])
def test_what_the_zips_unpack_to_is_as_good(tmp_path: Path, folder: str) -> None:
    for name in ("background", "evaluation"):
        members = omniglot(name, {"A" + name: 2, "B" + name: 2})
        write_zip(tmp_path / "zips" / f"images_{name}.zip", members | {f"__MACOSX/images_{name}/A/c/1.png": b""})
        write_folder(tmp_path / "folders" / folder, members | {f"images_{name}/Abackground/.DS_Store": b""})
    zips, folders = (OmniglotSets(str(tmp_path / n), split_fractions=NO_VAL, **SMALL) for n in ("zips", "folders"))
    assert classes(zips) == classes(folders)
    for split in ("train", "test"):
        assert (zips.split(split).images == folders.split(split).images).all()  # type: ignore[arg-type]


def test_official_protocols_have_their_numbers_of_characters(tmp_path: Path) -> None:
    write_omniglot(tmp_path, "background", "evaluation", "background_small1", "background_small2", drawings=1)
    root = str(tmp_path)
    assert sizes(OmniglotSets(root)) == {"train": 964, "test": 659}
    assert sizes(OmniglotSets(root, "vinyals")) == {"train": 1028, "val": 172, "test": 423}
    assert sizes(OmniglotSets(root, "vinyals", split_fractions=NO_VAL)) == {"train": 1200, "test": 423}
    small = OmniglotSets(root, "small1/small2")
    found = list(small.classes())
    names = {split: {each.name for each in found if each.split == split} for split in ("train", "test")}
    assert {split: len(each) for split, each in names.items()} == {"train": 136, "test": 156 - 24 - 26}
    assert not names["train"] & names["test"]


def test_characters_of_both_small_sets_are_left_out_of_test_and_named(tmp_path: Path) -> None:
    write_zip(tmp_path / "images_background_small1.zip", omniglot("background_small1", {"Greek": 2, "Korean": 1}))
    write_zip(tmp_path / "images_background_small2.zip", omniglot("background_small2", {"Greek": 2, "Tagalog": 3}))
    data = OmniglotSets(str(tmp_path), "small1/small2", split_fractions=NO_VAL, **SMALL)
    assert classes(data)["test"] == tuple(f"Tagalog/character0{i}" for i in (1, 2, 3))
    assert "Left out of test: 2 of the 5 characters of images_background_small2, which are in " in data.describe()


def test_turned_classes_are_in_the_split_of_their_original(tmp_path: Path) -> None:
    corner = np.zeros((8, 8), np.uint8)
    corner[0, 0] = 255  # upper left
    write_zip(tmp_path / "images_background.zip", omniglot("background", {"Greek": 2}))
    write_zip(tmp_path / "images_evaluation.zip", omniglot("evaluation", {"ULOG": 1}))
    data = OmniglotSets(str(tmp_path), split_fractions=NO_VAL, turned_classes="all", **SMALL)
    assert classes(data)["test"] == tuple(f"ULOG/character01{turn}" for turn in ("", "/rot090", "/rot180", "/rot270"))
    assert data.split("train").num_classes == 8


def test_omniglot_says_what_is_missing_or_wrong(tmp_path: Path) -> None:
    refused(OmniglotSets(str(tmp_path / "no")), f"There is no {tmp_path / 'no'}")
    (tmp_path / "cats").mkdir()
    refused(
        OmniglotSets(str(tmp_path)),
        f"There is no images_background.zip, nor the folder images_background that it unpacks to, in {tmp_path}, which "
        "holds 1 folders. Download it from https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_"
        "background.zip, or let --data.download true do so.",
    )
    write_zip(tmp_path / "images_background.zip", {"readme.txt": b"", "a.png": png(1)})
    refused(OmniglotSets(str(tmp_path)), "There is no character in", "folders such as Greek/character01")
    with pytest.raises(ConfigError, match="protocol is 'small'; allowed: 'background/evaluation', 'small1/small2'"):
        OmniglotSets(str(tmp_path), "small")  # type: ignore[arg-type]


# -- CIFAR-100 --------------------------------------------------------------------------------------------------------


def test_cifar100_has_all_images_of_train_and_test_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "archive" / "cifar-100-python.tar.gz", cifar100())
    write_folder(tmp_path / "folder", cifar100())
    data = CIFAR100Sets(str(tmp_path / "archive"), **SMALL)
    folder = CIFAR100Sets(str(tmp_path / "folder"), **SMALL)
    assert classes(data) == classes(folder)
    assert {split: len(names) for split, names in classes(data).items()} == {"train": 60, "val": 20, "test": 20}
    names = sorted(sum(classes(data).values(), ()))
    for split, found in classes(data).items():
        for name in found[::7]:
            assert greys(data, split, name) == [names.index(name)] * 3
    grey = CIFAR100Sets(str(tmp_path / "archive"), channels=1, **SMALL)
    assert grey.split("test").images.shape == (60, 1, 8, 8)


def test_cifar100_partitions_are_those_of_their_papers(tmp_path: Path) -> None:
    root = str(write_folder(tmp_path, cifar100(1, 0)))
    assert (
        sizes(CIFAR100Sets(root, "fsdm")) == sizes(CIFAR100Sets(root, "fc100")) == {"train": 60, "val": 20, "test": 20}
    )
    assert sizes(CIFAR100Sets(root, "cifar-fs")) == {"train": 64, "val": 16, "test": 20}
    split = {found.name: found.split for found in CIFAR100Sets(root, "fsdm").classes()}
    assert [split[name] for name in ("whale", "fox", "woman", "bee")] == ["test"] * 4
    assert [split[name] for name in ("bear", "camel", "worm", "shrew")] == ["val"] * 4
    with pytest.raises(ConfigError, match="partition is 'mini'"):
        CIFAR100Sets(root, "mini")  # type: ignore[arg-type]


def test_a_cifar100_of_another_form_is_named(tmp_path: Path) -> None:
    members = cifar100(1, 0)
    write_tar(tmp_path / "cifar-100-python.tar.gz", {n: c for n, c in members.items() if not n.endswith("meta")})
    refused(CIFAR100Sets(str(tmp_path)), "cifar-100-python.tar.gz holds no meta")
    members["cifar-100-python/train"] = pickle.dumps({"data": np.zeros((2, 5), np.uint8), "fine_labels": [0, 1]})
    write_tar(tmp_path / "cifar-100-python.tar.gz", members)
    refused(CIFAR100Sets(str(tmp_path)), "is not CIFAR-100 for Python")


# -- miniImageNet -----------------------------------------------------------------------------------------------------

SPLITS = {"train": ("n01", "n02"), "val": ("n03",), "test": ("n04",)}
GREY = {name: 40 * (i + 1) for i, name in enumerate(sum(SPLITS.values(), ()))}


def assert_mini(data: SetDataModule) -> None:
    assert classes(data) == SPLITS
    for split, names in SPLITS.items():
        for name in names:
            assert greys(data, split, name) == [GREY[name], GREY[name] + 1]


@pytest.mark.parametrize("images", ["flat folder", "folder of folders", "zip", "tar"])
def test_mini_imagenet_by_lists_and_images(tmp_path: Path, images: str) -> None:
    files = {}
    for split, names in SPLITS.items():
        rows = [(f"{name}{j:08d}.png", name) for name in names for j in range(2)]
        (tmp_path / f"{split}.csv").write_text(csv_of(rows))
        for file, name in rows:
            folder = f"{name}/" if images == "folder of folders" else ""
            files[f"images/{folder}{file}"] = png(GREY[name] + int(file[-5]))
    if images in ("zip", "tar"):
        (write_zip if images == "zip" else write_tar)(tmp_path / f"images.{images}", files)
    else:
        write_folder(tmp_path, files)
    assert_mini(MiniImageNetSets(str(tmp_path), **SMALL))


@pytest.mark.parametrize("form", ["image_data", "data"])
def test_mini_imagenet_by_pickled_images(tmp_path: Path, form: str) -> None:
    for split, names in SPLITS.items():
        pixels = np.array([GREY[name] + j for name in names for j in range(2)], np.uint8)
        array = np.broadcast_to(pixels[:, None, None, None], (len(pixels), 12, 12, 3)).copy()
        if form == "image_data":
            values: dict[str, Any] = {
                "image_data": array, "class_dict": {name: [2 * i, 2 * i + 1] for i, name in enumerate(names)}
            }  # fmt: skip
            file = f"mini-imagenet-cache-{split}.pkl"
        else:
            values = {"data": array, "labels": [i // 2 for i in range(len(pixels))]}
            values["catname2label"] = {name: i for i, name in enumerate(names)}
            phase = "train_phase_train" if split == "train" else split
            file = f"miniImageNet_category_split_{phase}.pickle"
        (tmp_path / file).write_bytes(pickle.dumps(values, protocol=2 if form == "data" else None))
    assert_mini(MiniImageNetSets(str(tmp_path), **SMALL))


def test_mini_imagenet_says_what_is_missing_or_wrong(tmp_path: Path) -> None:
    data = MiniImageNetSets(str(tmp_path), **SMALL)
    refused(data, "There is no miniImageNet in", "Expected are train.csv, val.csv and test.csv with a folder images")
    (tmp_path / "train.csv").write_text("name\n1.jpg\n")
    refused(data, "but no folder images with what it names")
    write_folder(tmp_path, {"images/1.png": png(1)})
    refused(data, "train.csv must have the columns filename and label")
    (tmp_path / "train.csv").write_text(csv_of([("2.png", "n01")]))
    refused(data, "names no image that is in")
    (tmp_path / "train.csv").unlink()
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps({"image_data": [1], "class_dict": {}}))
    refused(data, "must hold images as uint8 (N, h, w, 3)")
    with pytest.raises(ConfigError, match="the files of MiniImageNetSets are not public"):
        MiniImageNetSets(str(tmp_path), download=True)


# -- CelebA, CUB, Flowers ---------------------------------------------------------------------------------------------


def test_celeba_has_people_with_enough_images_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    people = [person for person in range(1, 11) for _ in range(3)] + [99]
    members = {f"img_align_celeba/{i:06d}.jpg": jpeg(5 * p) for i, p in enumerate(people, 1) if p != 99}
    write_zip(tmp_path / "img_align_celeba.zip", members | {"img_align_celeba/000031.jpg": jpeg(0)})
    lines = [f"{i:06d}.jpg {person}" for i, person in enumerate(people, 1)]
    (tmp_path / "identity_CelebA.txt").write_text("\n".join(reversed(lines)) + "\n")
    data = CelebASets(str(tmp_path), min_images=3, **SMALL)
    assert classes(data) == {
        "train": tuple(f"{person:05d}" for person in range(1, 8)), "val": ("00008",), "test": ("00009", "00010")
    }  # fmt: skip
    assert [round(grey / 5) for grey in greys(data, "test", "00010")] == [10] * 3
    assert "Left out: 1 of 11 people, with fewer than 3 images." in data.describe()
    refused(CelebASets(str(tmp_path), **SMALL), "None of the 11 people", "choose a smaller --data.min_images")
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg\n")
    refused(CelebASets(str(tmp_path), min_images=3, **SMALL), "each line must have an image and a person's number")


def test_cub_is_split_by_the_numbers_of_its_species(tmp_path: Path) -> None:
    species = {f"{i:03d}.Bird_{i}": i for i in range(1, 9)}
    members = {
        f"CUB_200_2011/images/{name}/{name}_{j}.jpg": jpeg(20 * i) for name, i in species.items() for j in (1, 2)
    }
    members["CUB_200_2011/parts/picture.jpg"] = jpeg(0)
    write_tar(tmp_path / "archive" / "CUB_200_2011.tgz", dict(sorted(members.items(), key=lambda each: each[0][::-1])))
    write_folder(tmp_path / "folder", members)
    for root in ("archive", "folder"):
        data = CUBSets(str(tmp_path / root), **SMALL)
        split = {name: [int(each[:3]) for each in found] for name, found in classes(data).items()}
        assert split == {"train": [1, 3, 5, 7], "val": [2, 6], "test": [4, 8]}
        assert [round(grey / 20) for grey in greys(data, "test", "008.Bird_8")] == [8, 8]
    assert sizes(CUBSets(str(tmp_path / "folder"))) == {"train": 4, "val": 2, "test": 2}


def test_flowers_are_split_by_the_numbers_of_their_classes(tmp_path: Path) -> None:
    labels = [1 + i % 102 for i in range(204)]
    write_tar(tmp_path / "102flowers.tgz", {f"jpg/image_{i:05d}.jpg": jpeg(n) for i, n in enumerate(labels, 1)})
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    data = Flowers102Sets(str(tmp_path), **SMALL)
    found = classes(data)
    assert {split: len(names) for split, names in found.items()} == {"train": 71, "val": 15, "test": 16}
    assert sorted(sum(found.values(), ())) == [f"{i:03d} {name}" for i, name in enumerate(Flowers102.classes, 1)]
    assert found["test"][0] == "005 english marigold" and found["val"][-1] == "102 blackberry lily"
    assert all(abs(grey - 5) <= 1 for grey in greys(data, "test", "005 english marigold"))
    assert sizes(Flowers102Sets(str(tmp_path), "lofgan")) == {"train": 85, "test": 17}
    (tmp_path / "imagelabels.mat").write_bytes(b"no matrix")
    refused(Flowers102Sets(str(tmp_path), **SMALL), "imagelabels.mat cannot be read as a file of MATLAB")
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[0, 1]])})
    refused(Flowers102Sets(str(tmp_path), **SMALL), "must hold class numbers from 1 to 102")


# -- download ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A server on this machine has CIFAR-100's archive, whose SHA-256 is stated as that given, or its own."""
    archive = write_tar(tmp_path / "served" / "cifar.tgz", cifar100(1, 1))
    handler = partial(SimpleHTTPRequestHandler, directory=archive.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def state(sha256: str = file_sha256(archive), name: str = "cifar.tgz") -> None:
            url = f"http://127.0.0.1:{server.server_port}/{name}"
            monkeypatch.setattr(CIFAR100Sets, "files", (OfficialFile("cifar-100-python.tar.gz", url, sha256),))

        yield state
        server.shutdown()


def test_missing_files_are_downloaded_once(tmp_path: Path, served: Callable[..., None], monkeypatch) -> None:
    served()
    root = tmp_path / "new" / "root"
    CIFAR100Sets(str(root), download=True, **SMALL).prepare_data()
    assert (root / "cifar-100-python.tar.gz").is_file()
    served(name="gone")
    assert CIFAR100Sets(str(root), download=True, **SMALL).split("train").num_classes == 60


def test_a_download_that_is_another_file_is_refused(tmp_path: Path, served: Callable[..., None]) -> None:
    served("0" * 64)
    refused(CIFAR100Sets(str(tmp_path), download=True, **SMALL), "gave a file with the SHA-256", "0" * 64)
    assert not list(tmp_path.glob("cifar*"))
    served(name="gone")
    refused(CIFAR100Sets(str(tmp_path), download=True, **SMALL), "cannot be downloaded (HTTP Error 404", "by hand")
