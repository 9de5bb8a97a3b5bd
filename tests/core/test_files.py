"""Files: written whole or not at all, and their hashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_vfs.core.errors import VFSError
from lightning_vfs.core.files import file_sha256, hash_of, replacing


def test_a_file_appears_whole_with_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "new" / "file") as temporary:
            temporary.write_text("text")
            temporary.chmod(0o600)
            assert not (tmp_path / "new" / "file").exists()
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "file").read_text() == "text"
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_fails_leaves_the_file_before_and_nothing_else(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(RuntimeError), replacing(tmp_path / "file") as temporary:
        if kind == "folder":
            temporary.mkdir()
            temporary = temporary / "part"
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_two_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one"


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import os, pathlib, sys; from lightning_vfs.core.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as file: file.write_text('half'); os.kill(os.getpid(), 9)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "last.ckpt")], check=False)
    with replacing(tmp_path / "other") as other:
        other.touch()
    assert len(os.listdir(tmp_path)) == 3, "they may be copied, or of a clock that differs: not at once"
    monkeypatch.setattr("lightning_vfs.core.files.ABANDONED_SECONDS", -1.0)
    with replacing(tmp_path / "last.ckpt") as whole, replacing(tmp_path / "last.ckpt") as beside:
        whole.write_text("whole")
        beside.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "other"]


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(VFSError, match=f"{tmp_path}/y cannot be read"):
        file_sha256(tmp_path / "y")


def test_a_hash_tells_values_and_their_types_apart() -> None:
    values = [("ab", "c"), ("a", "bc"), (np.arange(3),), (np.arange(3, dtype=np.int32),), (np.arange(3)[None],)]
    assert len({hash_of(*value) for value in values}) == len(values)
