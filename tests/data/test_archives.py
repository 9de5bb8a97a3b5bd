"""Archives and pickles from other people: what is in them is read, and nothing else happens."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from lightning_vfs.core.errors import DataError
from lightning_vfs.data import CUBSets, OmniglotSets
from lightning_vfs.data import archives as archives_module
from lightning_vfs.data.archives import Archive, Folder
from lightning_vfs.data.image_sets import UnreadableImagesWarning
from lightning_vfs.data.pickles import read_pickle

from .official import omniglot, png, write_folder, write_tar, write_zip

FILES = {"a/1.png": png(1), "a/2.png": png(2), "b/notes.txt": b"text", ".hidden/3.png": png(3), "__MACOSX/4.png": b""}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz", "x.tar.gz"])
def test_an_archive_has_the_files_that_it_unpacks_to(tmp_path: Path, name: str) -> None:
    archive = Archive((write_zip if name.endswith(".zip") else write_tar)(tmp_path / name, FILES))
    folder = Folder(write_folder(tmp_path / "folder", {n: c for n, c in FILES.items() if "MACOSX" not in n}))
    assert list(archive.names) == list(folder.names) == ["a/1.png", "a/2.png", "b/notes.txt"]
    assert archive.images == folder.images == ["a/1.png", "a/2.png"]
    for each in ("b/notes.txt", "a/2.png", "a/1.png"):
        assert archive.read(each) == folder.read(each) == FILES[each]
    assert sorted(os.listdir(tmp_path)) == ["folder", name]
    again = pickle.loads(pickle.dumps(archive))  # as to processes that are not forked
    assert again.read("a/1.png") == FILES["a/1.png"]
    for tree in (archive, folder):
        with pytest.raises(DataError, match="has (more than )?.*3"):
            tree.read("b/notes.txt", most=3)
        with pytest.raises(DataError, match="c.png"):
            tree.read("c.png")


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/tmp/evil.png", "..\\evil.png", "C:/evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = (write_zip if kind == "zip" else write_tar)(tmp_path / f"x.{kind}", {"a/1.png": png(1), name: png(2)})
    with pytest.raises(DataError, match="which leads out of the archive"):
        Archive(path)


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            info = tarfile.TarInfo("a/1.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        with pytest.raises(DataError, match="holds a link, 'a/1.png'"):
            Archive(tmp_path / "x.tar")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("a/1.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="holds a link"):
        Archive(tmp_path / "x.zip")


def test_an_archive_that_expands_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives_module, "SPARED", 2**16)
    path = write_tar(tmp_path / "x.tgz", {"a/1.png": png(1), "a/2.png": bytes(2**22)})
    with pytest.raises(DataError, match=r"holds more than 200 times as many \(a/2.png alone 4,194,304\)"):
        Archive(path)
    monkeypatch.setattr(archives_module, "MOST_BYTES", 2**20)
    packed = zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED)
    with packed:
        packed.writestr("a/2.png", bytes(2**22))
    with pytest.raises(DataError, match="a/2.png has 4,194,304 bytes, above 1,048,576"):
        Archive(tmp_path / "x.zip").read("a/2.png", most=2**20)


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_damaged_archives_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"no archive at all" * 100)
    with pytest.raises(DataError, match=rf"x\.{kind} cannot be read \(.*\): it is damaged or no archive"):
        Archive(path)
    files = {f"a/{i}.png": os.urandom(2000) for i in range(20)}
    whole = (write_zip if kind == "zip" else write_tar)(path, files).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        Archive(path).read("a/15.png")


def test_damaged_members_are_named_and_may_be_left_out(tmp_path: Path) -> None:
    members = omniglot("background", {"Greek": 4}, drawings=3)
    members["images_background/Greek/character02/0003_02.png"] = b"\x89PNG but not"
    write_zip(tmp_path / "images_background.zip", members)
    write_zip(tmp_path / "images_evaluation.zip", omniglot("evaluation", {"ULOG": 1}))
    options = {"set_size": 2, "image_size": 8, "split_fractions": (1, 0, 0)}
    with pytest.raises(
        DataError, match=r"(?s)1 of 14 images cannot be read .*zip: images_background/Greek/character02"
    ):
        OmniglotSets(str(tmp_path), **options).setup()  # type: ignore[arg-type]
    with pytest.warns(UnreadableImagesWarning, match="1 of 14 images"):
        data = OmniglotSets(str(tmp_path), on_unreadable="skip", **options)  # type: ignore[arg-type]
        assert data.split("train").counts.tolist() == [3, 2, 3, 3]


def test_members_of_an_archive_are_read_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed tar is read from its beginning for a member that lies behind the last one."""
    names = [f"CUB_200_2011/images/{i:03d}.Bird/{j}.png" for j in range(3) for i in (4, 2, 1, 3)]
    write_tar(tmp_path / "CUB_200_2011.tgz", {name: png(10 * i) for i, name in enumerate(names)})
    read, real = [], Archive.read

    def noting(archive: Archive, name: str, *most: int) -> bytes:
        read.append(name)
        return real(archive, name, *most)

    monkeypatch.setattr(Archive, "read", noting)
    data = CUBSets(str(tmp_path), set_size=2, image_size=8)
    assert [data.split("val").uint8(i).unique().item() for i in range(3)] == [10, 50, 90]
    assert read == names


# -- pickles ----------------------------------------------------------------------------------------------------------


def loaded(content: bytes) -> object:
    return read_pickle(io.BytesIO(content), "the file")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_and_plain_values_are_read(protocol: int) -> None:
    values = {
        "text": "a", "bytes": b"\xff", "none": None, "nested": [1, (2.5, True)], "ordered": OrderedDict(a=1),
        "scalar": np.int64(3), "float": np.float32(0.5), "empty": np.zeros((0, 4), np.uint8), "no bytes": b"",
    }  # fmt: skip
    arrays = {
        "images": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big end": np.arange(4, dtype=">i4"),
    }
    found = loaded(pickle.dumps(values | arrays, protocol=protocol))
    assert isinstance(found, dict)
    for name, value in values.items():
        assert np.array_equal(found[name], value) if name == "empty" else found[name] == value
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype.kind == array.dtype.kind


def test_an_array_as_python_2_pickled_it_is_read() -> None:
    content = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x05\xff"
        b"tbs."
    )
    found = loaded(content)
    assert isinstance(found, dict) and found["data"].tolist() == [5, 255]


class Command:
    """Pickles as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for hostile in (
        Command(os.system, f"touch {made}"),
        Command(open, str(made), "w"),
        Command(eval, "1 + 1"),
        Command(np.ndarray, (10**12,)),  # would take memory
        Command(np.fromfile, "/etc/passwd"),
    ):
        with pytest.raises(DataError, match="cannot be read as a pickle of arrays and plain values"):
            print(loaded(pickle.dumps({"data": hostile, "class_dict": {}})))
    assert not made.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps(np.array([object()], dtype=object)),
        pickle.dumps(np.zeros(3, dtype=[("a", "u1")])),
        pickle.dumps(np.dtype("u1")),
        pickle.dumps(np.zeros(100, np.uint8))[:-30],
        pickle.dumps(np.zeros(3, np.uint8), protocol=2).replace(b"K\x03\x85", b"K\x7f\x85"),  # a shape of 127
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # would take 32 GiB
        b"\x80\x02]q\x00h\x00a.",  # a list of itself
    ],
)
def test_other_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="the file cannot be read as a pickle of arrays and plain values"):
        loaded(content)


def test_values_that_occur_often_are_read_once() -> None:
    value: list[object] = [np.zeros(2, np.uint8)]
    for _ in range(60):
        value = [value, value]
    found = loaded(pickle.dumps(value))
    assert isinstance(found, list) and found[0] is found[1]
