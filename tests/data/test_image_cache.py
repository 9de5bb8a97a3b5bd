"""The cache of decoded images."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import warnings
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

from lightning_vfs.core.errors import DataError
from lightning_vfs.data import ClassImages, tensor_file
from lightning_vfs.data.cache import DamagedCacheWarning, cached_images, content_key
from lightning_vfs.data.tensor_file import TensorFile


@pytest.fixture
def build(numbered: Callable[..., ClassImages]) -> Callable[[], ClassImages]:
    return lambda: numbered([2, 0, 3], channels=3)


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def never() -> ClassImages:
    raise AssertionError("built again")


def test_images_are_built_once_and_then_memory_mapped(tmp_path: Path, build: Callable[[], ClassImages]) -> None:
    built = build()
    for images in (cached_images(tmp_path, "x", "key", build), cached_images(tmp_path, "x", "key", never)):
        assert torch.equal(images.images, built.images)
        assert images.class_names == ("a", "b", "c")
        assert images.labels.tolist() == [0, 0, 2, 2, 2]
    file = only_file(tmp_path)
    assert str(file) in Path("/proc/self/maps").read_text()


def test_mapped_images_can_be_used_without_a_warning_and_never_change_the_file(
    tmp_path: Path, build: Callable[[], ClassImages]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = cached_images(tmp_path, "x", "key", build)
        images.float([0, 1])
    images.images[:] = 0
    assert cached_images(tmp_path, "x", "key", never).uint8(4).unique().tolist() == [4]


@pytest.mark.parametrize("channels", [1, 3])
def test_other_processes_map_the_file_again_in_place_of_a_copy(
    tmp_path: Path, numbered: Callable[..., ClassImages], channels: int
) -> None:
    cached = cached_images(tmp_path, "x", "key", lambda: numbered([70, 0, 80], size=32))
    images = cached.images.expand(-1, channels, -1, -1)
    split = ClassImages(images, cached.class_names, cached.labels, mapped=cached.mapped).select([2, 0])
    pickled = ForkingPickler.dumps(split)  # what starts a process that is not forked; it moves tensors to shared memory
    assert len(pickled) < split.images.nbytes / 10 / channels
    assert not split._stored.is_shared()
    again = pickle.loads(pickled)
    assert torch.equal(again.images, split.images) and again.class_names == split.class_names == ("c", "a")


def test_another_key_is_another_file(tmp_path: Path, build: Callable[[], ClassImages]) -> None:
    assert content_key({"size": 8, "files": ["a"]}) == content_key({"files": ["a"], "size": 8})
    assert content_key({"size": 8}) != content_key({"size": 9})
    cached_images(tmp_path, "x", content_key(1), build)
    with pytest.raises(AssertionError, match="built again"):
        cached_images(tmp_path, "x", content_key(2), never)


@pytest.mark.parametrize("left", [0, 4, 60, -1], ids=["empty", "no header", "half a header", "a byte short"])
def test_a_damaged_file_is_built_again_with_a_warning(
    tmp_path: Path, build: Callable[[], ClassImages], left: int
) -> None:
    cached_images(tmp_path, "x", "key", build)
    file = only_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    with pytest.warns(DamagedCacheWarning, match=f"{file} is damaged .*: decoding the images again"):
        images = cached_images(tmp_path, "x", "key", build)
    assert images.uint8(4).unique().tolist() == [4]
    assert file.read_bytes() == whole


def test_a_byte_that_changed_is_noticed(tmp_path: Path, build: Callable[[], ClassImages]) -> None:
    cached_images(tmp_path, "x", "key", build)
    file = only_file(tmp_path)
    before, content = file.stat(), bytearray(file.read_bytes())
    for place in (-1, len(content) // 2, 20):
        damaged = content.copy()
        damaged[place] ^= 1
        file.write_bytes(damaged)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.warns(DamagedCacheWarning, match="is damaged"):
            assert cached_images(tmp_path, "x", "key", build).uint8(4).unique().tolist() == [4]
    assert file.read_bytes() == content


def test_a_copied_cache_is_read_once_to_compare_its_checksum(
    tmp_path: Path, build: Callable[[], ClassImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_images(tmp_path / "a", "x", "key", build)
    (tmp_path / "b").mkdir()
    shutil.copy(only_file(tmp_path / "a"), tmp_path / "b")
    verified = []
    monkeypatch.setattr(tensor_file, "verify", lambda path: verified.append(path))
    for _ in range(2):
        for folder in ("a", "b"):
            cached_images(tmp_path / folder, "x", "key", never)
    assert verified == [only_file(tmp_path / "b")]


def test_a_file_of_another_kind_under_the_name_is_built_again(tmp_path: Path, build: Callable[[], ClassImages]) -> None:
    from safetensors.torch import save_file

    save_file({"images": torch.zeros(1)}, tmp_path / "x-key.safetensors")
    with pytest.warns(DamagedCacheWarning):
        assert len(cached_images(tmp_path, "x", "key", build)) == 5


def test_a_killed_process_leaves_nothing_under_the_final_name(
    tmp_path: Path, build: Callable[[], ClassImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(file: TensorFile, finish: Callable[[TensorFile], None] = TensorFile.finish) -> None:
        finish(file)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(TensorFile, "finish", killed)
    process = multiprocessing.get_context("fork").Process(target=cached_images, args=(tmp_path, "x", "key", build))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [file.suffix for file in tmp_path.iterdir()] == [".tmp"]


def test_a_failed_build_or_write_leaves_nothing(
    tmp_path: Path, build: Callable[[], ClassImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorFile, "write", full)
    with pytest.raises(DataError, match=r"No space left on device.*--data.cache_dir.*LIGHTNING_VFS_CACHE"):
        cached_images(tmp_path, "x", "key", build)
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, build: Callable[[], ClassImages]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"cannot be written to the cache {tmp_path}/file/cache"):
        cached_images(tmp_path / "file" / "cache", "x", "key", build)


def test_others_may_read_the_cache(tmp_path: Path, build: Callable[[], ClassImages]) -> None:
    cached_images(tmp_path, "x", "key", build)
    file = only_file(tmp_path)
    assert os.stat(file).st_mode & 0o777 == 0o644
