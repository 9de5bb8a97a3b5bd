"""Images in zip and tar archives, read where they are, and folders that such archives unpack to."""

from __future__ import annotations

import os
import re
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lightning_vfs.core.errors import DataError
from lightning_vfs.data.decode import is_image
from lightning_vfs.data.decoded import ImageFiles
from lightning_vfs.data.sources import EncodedImages, ImageSource, file_state

MOST_BYTES = 2**28
"""Bytes of an image in an archive at most; the largest of these data sets has less than 2**21."""

MOST_EXPANSION, SPARED = 200, 2**26
"""A compressed tar may hold at most so many times its own bytes, and so many more; pictures compress hardly at all."""

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


class Tree(ABC):
    """Files in a folder or in an archive, by their names: relative paths with `/`.

    Attributes:
        path: of the folder or archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of all files that are not hidden, sorted."""

    @property
    def images(self) -> list[str]:
        """Names of the files that are images."""
        return [name for name in self.names if is_image(PurePosixPath(name))]

    @abstractmethod
    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """Content of a file.

        Raises:
            DataError: there is no such file, it cannot be read, or it has more than `most` bytes.
        """

    @abstractmethod
    def state(self, name: str) -> str:
        """What changes when the file does."""

    @abstractmethod
    def source(self, names: Sequence[str], image_size: int, channels: int) -> ImageSource:
        """The images of these names, to be decoded."""


class Folder(Tree):
    """A folder."""

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._below())

    def _below(self) -> Iterator[str]:
        for parent, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    yield Path(parent, name).relative_to(self.path).as_posix()

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        path = self.path / name
        try:
            with path.open("rb") as file:
                content = file.read(most + 1)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
        return _not_more(content, most, str(path))

    def state(self, name: str) -> str:
        return file_state(self.path / name)

    def source(self, names: Sequence[str], image_size: int, channels: int) -> ImageSource:
        return ImageFiles(root=self.path, names=names, image_size=image_size, channels=channels)


class Member(NamedTuple):
    """A file in an archive: where it begins, where its content does, its size, and a checksum (0 without one)."""

    position: int
    start: int
    size: int
    checksum: int


class Archive(Tree):
    """A zip or tar archive, compressed or not, that is never unpacked: members are read one by one.

    Members that are links, whose names lead out of the archive, or that expand to far more than pictures do, are
    refused with the archive.

    Raises:
        DataError: it is not an archive, is damaged, or holds such members.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zipped = path.name.endswith(".zip")
        self._state = file_state(path)
        self._open: zipfile.ZipFile | tarfile.TarFile | None = None
        self._process = os.getpid()
        with self._reading():
            self._members = dict(self._zip_members() if self._zipped else self._tar_members())
        self._names = sorted(name for name in self._members if not _hidden(name))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    @property
    def names(self) -> Sequence[str]:
        return self._names

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        if name not in self._members:
            raise DataError(f"{self.path} holds no {name}.")
        size = self._members[name].size
        if size > most:
            raise DataError(f"{self.path}: {name} has {size:,} bytes, above {most:,}.")
        with self._reading(name):
            return self._read(name)

    def _read(self, name: str) -> bytes:
        if self._process != os.getpid():  # a forked process would share the position in the file
            self._open, self._process = None, os.getpid()
        if self._open is None:  # and it stays open: opening reads the list of members, or begins from the first
            self._open = zipfile.ZipFile(self.path) if self._zipped else tarfile.open(self.path)  # noqa: SIM115
        if isinstance(self._open, zipfile.ZipFile):
            return self._open.read(name)
        member, file = self._members[name], self._open.fileobj
        assert file is not None
        file.seek(member.start)
        content = bytes(file.read(member.size))
        if len(content) < member.size:
            raise EOFError(f"it ends after {len(content):,} of {member.size:,} bytes")
        return content

    def state(self, name: str) -> str:
        position, _, size, checksum = self._members[name]
        return f"{checksum} {size}" if self._zipped else f"{self._state} {position} {size}"

    def position(self, name: str) -> int:
        """Where a member is in the archive, in bytes."""
        return self._members[name].position

    def source(self, names: Sequence[str], image_size: int, channels: int) -> ImageSource:
        return EncodedImages(root=self.path, image_size=image_size, channels=channels, files=self, names=names)

    def title(self, name: str) -> str:
        """What messages call a member."""
        return f"{self.path}: {name}"

    def contents(self, names: Sequence[str]) -> list[bytes | DataError]:
        """Content of members, or what is wrong with them."""
        return [self._content(name) for name in names]

    def _content(self, name: str) -> bytes | DataError:
        try:
            return self.read(name)
        except DataError as error:
            return error

    def _zip_members(self) -> Iterator[tuple[str, Member]]:
        with zipfile.ZipFile(self.path) as file:
            for info in file.infolist():
                self._check_name(info.filename)
                if stat.S_ISLNK(info.external_attr >> 16):
                    self._refuse_link(info.filename)
                if not info.is_dir():
                    yield info.filename, Member(info.header_offset, info.header_offset, info.file_size, info.CRC)

    def _tar_members(self) -> Iterator[tuple[str, Member]]:
        size, end = self.path.stat().st_size, 0
        with tarfile.open(self.path) as file:
            for info in file:
                self._check_name(info.name)
                if info.issym() or info.islnk():
                    self._refuse_link(info.name)
                if info.offset_data + info.size > MOST_EXPANSION * size + SPARED:
                    raise DataError(
                        f"{self.path} has {size:,} bytes, but holds more than {MOST_EXPANSION} times as many "
                        f"({info.name[:200]} alone {info.size:,}), as pictures never do. Use another copy."
                    )
                if info.isfile():
                    yield info.name.removeprefix("./"), Member(info.offset, info.offset_data, info.size, 0)
                    end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            # a tar that was cut short looks like a shorter one, but for the empty block at the end
            assert file.fileobj is not None
            file.fileobj.seek(end)
            if len(file.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
                raise EOFError("its end is missing")

    def _check_name(self, name: str) -> None:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
            raise DataError(
                f"{self.path} holds {name[:200]!r}, which leads out of the archive: it is not the official file. Use "
                "another copy."
            )

    def _refuse_link(self, name: str) -> None:
        raise DataError(f"{self.path} holds a link, {name[:200]!r}: it is not the official file. Use another copy.")

    @contextmanager
    def _reading(self, name: str | None = None) -> Iterator[None]:
        """Turn what damaged archives cause into an error that names the archive, or the member."""
        try:
            yield
        except (OSError, EOFError, ValueError, RuntimeError, KeyError, zlib.error) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(self._damage(error, name)) from error
        except (tarfile.TarError, zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(self._damage(error, name)) from error

    def _damage(self, error: Exception, name: str | None) -> str:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        member = f": {name}" if name else ""
        return f"{self.path}{member} cannot be read ({reason}): it is damaged or no archive. Use another copy."


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _not_more(content: bytes, most: int, name: str) -> bytes:
    if len(content) > most:
        raise DataError(f"{name} has more than {most:,} bytes.")
    return content
