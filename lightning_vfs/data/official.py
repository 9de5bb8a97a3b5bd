"""OfficialSets, the base class of data sets that are read from the files in which they were published."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from filelock import FileLock

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import file_sha256, local_path, replacing
from lightning_vfs.data.archives import SUFFIXES, Archive, Folder, Tree
from lightning_vfs.data.image_sets import FoundClass, FoundImages, ImageSets, found_images
from lightning_vfs.data.layout import contents, no_such


class OfficialFile(NamedTuple):
    """A file of a data set: its name, where it is published, and its SHA-256, or None if that is not known."""

    name: str
    url: str
    sha256: str | None = None


class OfficialSets(ImageSets):
    """Sets of images from the files in which a data set was published.

    Archives are read as they are: nothing is unpacked.

    Args:
        root: folder of the files, or of what the archives among them unpack to.
        download: download files that are missing, to `root`.
        **kwargs: as for `ImageSets`.

    Attributes:
        files: the official files.
        folders: folders below `root` in which other programs keep them.

    Raises:
        ConfigError: a value is not allowed.
    """

    may_change = ImageSets.may_change | {"download"}
    files: ClassVar[Sequence[OfficialFile]]
    folders: ClassVar[Sequence[str]] = ()

    def __init__(self, root: str, download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = local_path(root, "root")
        if download and not self.files:
            raise ConfigError(f"download is {download}, but the files of {type(self).__name__} are not public: false.")
        self.download = download
        self._trees: dict[str, Tree] = {}

    @abstractmethod
    def classes(self) -> Iterable[FoundClass]:
        """The classes, with their splits and images."""

    def find(self) -> FoundImages:
        self._remarks = []
        found = list(self.classes())
        if not found:
            raise DataError(f"There is no image of {type(self).__name__} in {self.root}: it holds {self._holds()}.")
        return found_images(found, self.image_size, self.channels, self._remarks)

    def remark(self, line: str) -> None:
        """Say something of the data in `describe`."""
        self._remarks.append(line)

    def tree(self, archive: str, folder: str | None = None) -> Tree:
        """What an archive holds, or the folder that it unpacks to; the archive if both are there.

        Args:
            archive: name of an official file.
            folder: that it unpacks to; by default its name without the suffix.

        Raises:
            DataError: neither is there, or the archive cannot be read.
        """
        if archive not in self._trees:
            unpacked = folder or next(archive.removesuffix(end) for end in SUFFIXES if archive.endswith(end))
            places = [self.root / place / name for name in (archive, unpacked) for place in ("", *self.folders)]
            found = next((path for path in places if path.exists()), None) or self.file(archive, unpacked)
            self._trees[archive] = Folder(found) if found.is_dir() else Archive(found)
        return self._trees[archive]

    def file(self, name: str, unpacked: str | None = None) -> Path:
        """Path of an official file, which is downloaded if it may be.

        Raises:
            DataError: it is not there, or cannot be downloaded.
        """
        places = [self.root / place / name for place in ("", *self.folders)]
        found = next((path for path in places if path.is_file()), None)
        if found is not None:
            return found
        official = next(file for file in self.files if file.name == name)
        if self.download:
            return self._download(official)
        if self.root.is_file():
            raise DataError(f"{self.root} is a file. Give the folder that holds it as --data.root.")
        if not self.root.is_dir():
            raise DataError(no_such(self.root))
        folder = f", nor the folder {unpacked} that it unpacks to" if unpacked else ""
        raise DataError(
            f"There is no {name}{folder}, in {self.root}, which holds {self._holds()}. Download it from "
            f"{official.url}, or let --data.download true do so."
        )

    def _holds(self) -> str:
        return contents(self.root)

    def _download(self, official: OfficialFile) -> Path:
        """Download a file to the root, once for all processes of the machine.

        Raises:
            DataError: it cannot be downloaded, or is not what was published.
        """
        # torchvision's download knows Google Drive's forms
        from torchvision.datasets.utils import download_url

        path = self.root / official.name
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{official.name}.lock"):
                if not path.is_file():
                    with replacing(path) as temporary:
                        download_url(official.url, str(temporary.parent), temporary.name)
                        self._check_sum(official, temporary)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{official.url} cannot be downloaded ({error}): put the file into {self.root} by hand."
            ) from error
        return path

    def _check_sum(self, official: OfficialFile, path: Path) -> None:
        if official.sha256 and (found := file_sha256(path)) != official.sha256:
            raise DataError(
                f"{official.url} gave a file with the SHA-256 {found}, but that of {official.name} is "
                f"{official.sha256}: it was changed, or is damaged."
            )


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ConfigError for an option that is not one of the values allowed."""
    if value not in (choices := list(allowed)):
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(map(repr, choices))}.")
