"""What is kept in the cache folder, and what is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.data import ClassImages
from lightning_vfs.data.cache import cached_images, content_key
from lightning_vfs.data.cache_folder import Lease, entries, in_use, make_space, parse_size, remove, size_limit

MiB = 2**20


def filled(folder: Path, count: int) -> list[str]:
    """Caches of one MiB each, the first one used longest ago; returns their names."""
    names = []
    for i in range(count):
        images = ClassImages(torch.full((1, 1, 1024, 1024), i, dtype=torch.uint8), ["a"], [0])
        cached_images(folder, "glyphs", content_key(i), lambda images=images: images, f"/data/{i}")
        names.append(f"glyphs-{content_key(i)}")
        for file in folder.glob(f"{names[-1]}.*"):
            os.utime(file, (1000 + i, 1000 + i))
    return names


def left(folder: Path) -> list[str]:
    return [entry.name for entry in entries(folder)]


def test_the_least_recently_used_is_removed_first(tmp_path: Path) -> None:
    names = filled(tmp_path, 4)
    cached_images(tmp_path, "glyphs", content_key(0), lambda: pytest.fail("built again"))
    assert left(tmp_path) == [*names[1:], names[0]]
    said: list[str] = []
    taken = make_space(tmp_path, MiB, said.append, limit=int(3.5 * MiB))
    assert left(tmp_path) == [names[3], names[0]]
    assert 2 * MiB < taken < 2.5 * MiB
    assert len(said) == 2
    assert "may take 3.5 MiB (LIGHTNING_VFS_CACHE_SIZE): glyphs: 1 images of 1024 x 1024, grey of /data/1" in said[0]


def test_a_new_cache_makes_room_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_VFS_CACHE_SIZE", "2.5MiB")
    names = filled(tmp_path, 3)
    assert left(tmp_path) == names[1:]


def test_what_a_running_job_uses_stays(tmp_path: Path) -> None:
    names = filled(tmp_path, 3)
    holding = (
        "import sys, time; from pathlib import Path; from lightning_vfs.data.cache_folder import Lease\n"
        "lease = Lease(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / f"{names[0]}.safetensors")], stdout=subprocess.PIPE
    ) as job:
        assert job.stdout is not None and job.stdout.readline() == b"held\n"
        mine = Lease(tmp_path / f"{names[1]}.safetensors")
        with FileLock(tmp_path / "folders-00000000-0123456789abcdef.lock"):
            (tmp_path / "folders-00000000-0123456789abcdef.partial").write_bytes(bytes(MiB))
            make_space(tmp_path, 0, lambda _: None, limit=0)
            assert left(tmp_path) == [*names[:2], "folders-00000000-0123456789abcdef"]
            assert all(map(in_use, entries(tmp_path)))
        job.kill()
    del mine
    make_space(tmp_path, 0, lambda _: None, limit=0)
    assert left(tmp_path) == []


def test_images_hold_their_file_as_long_as_they_exist(tmp_path: Path, numbered: Callable[..., ClassImages]) -> None:
    images = cached_images(tmp_path, "x", "0123456789abcdef", lambda: numbered([3, 4]))
    (entry,) = entries(tmp_path)
    some = images.select([1])
    del images
    assert not remove(entry)
    assert some.uint8(0).unique().tolist() == [3]
    del some
    assert remove(entry)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No such file"):
        Lease(entry.files[-1])


def test_files_of_killed_jobs_are_removed_and_others_stay(tmp_path: Path) -> None:
    (name,) = filled(tmp_path, 1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, old = os.uname().nodename[:20], time.time() - 3600
    killed = [
        tmp_path / f".glyphs-0123.{host}.{dead.pid}.0a1b2c3d.tmp",
        tmp_path / "features" / f".0123.{host}.{dead.pid}.0a1b2c3d.tmp",
        tmp_path / ".glyphs-0123.elsewhere.1.0a1b2c3d.tmp",
        tmp_path / "folders-00000000-0123456789abcdef.lock",
    ]
    kept = [
        tmp_path / f".glyphs-0123.{host}.{os.getpid()}.0a1b2c3d.tmp",
        tmp_path / ".glyphs-0123.elsewhere.2.0a1b2c3d.tmp",
        tmp_path / "my-notes.txt",
        tmp_path / "thesis.safetensors",
    ]
    (tmp_path / "features").mkdir()
    for file in killed + kept:
        file.write_bytes(b"1")
        os.utime(file, (old, old))
    os.utime(killed[2], (old - 86_400, old - 86_400))
    make_space(tmp_path, 0, lambda _: None)
    assert not any(file.exists() for file in killed)
    assert all(file.exists() for file in kept)
    make_space(tmp_path, 0, lambda _: None, limit=0)
    assert left(tmp_path) == [] != name
    assert all(file.exists() for file in kept), "files of the user"


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("1.5 TiB", 3 * 2**39), ("1000", 1000), ("200 mib", 200 * MiB), ("7b", 7), ("0", 0)],
)
def test_sizes_are_understood(text: str, size: int) -> None:
    assert parse_size(text, "--limit") == size


def test_other_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("much", "-5GB", "5 GB or so", "1e9"):
        with pytest.raises(ConfigError, match="--limit is .*; it must be a size such as 50GB"):
            parse_size(text, "--limit")
    assert 0 < size_limit(tmp_path / "not" / "there") <= 200 * 2**30
    monkeypatch.setenv("LIGHTNING_VFS_CACHE_SIZE", "all")
    with pytest.raises(ConfigError, match="LIGHTNING_VFS_CACHE_SIZE is 'all'"):
        size_limit(tmp_path)
