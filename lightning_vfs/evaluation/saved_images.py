"""Images of an evaluation as PNGs, in folders that other tools take."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import begin_files, local_path
from lightning_vfs.data.pictures import save_png
from lightning_vfs.training.ranks import gather_objects

LISTING = "images.json"
"""File that lists the images of an evaluation in their folder."""


def _image_name(i: int) -> str:
    return f"{i:06d}.png"


class SavedImages:
    """Images of a split, by kind and number.

    Args:
        folder: for the images of all splits; None saves nothing.
        split: its name.

    Attributes:
        writable: whether images are saved; not before `make_room`, and no longer once one could not be written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, split: str) -> None:
        self.folder, self.split, self.writable = folder, split, False

    def make_room(self, counts: Mapping[str, int], first_rank: bool) -> None:
        """Prepare the folders; where they cannot be written, a warning says so.

        Args:
            counts: images by kind.
            first_rank: whether this rank does it.

        Raises:
            ConfigError: they hold images of those names that no evaluation has written; on every rank.
        """
        taken = full = None
        if self.folder is not None and first_rank:
            try:
                for kind, count in counts.items():
                    begin_files(self._path(kind), LISTING, [_image_name(i) for i in range(count)])
            except (ConfigError, OSError) as error:
                full = str(error) if isinstance(error, OSError) or error.__cause__ else None
                taken = None if full else str(error)
        taken, full = gather_objects((taken, full))[0]
        if taken:
            raise ConfigError(taken)
        if full and first_rank:
            warnings.warn(f"Images are not saved: {full}", stacklevel=3)
        self.writable = self.folder is not None and not full

    def save(self, kind: str, i: int, image: Tensor) -> None:
        """Write image uint8 (c, h, w) number `i`; a warning says where it cannot be."""
        folder = self._path(kind)
        try:
            save_png(image, folder / _image_name(i))
        except OSError as error:
            warnings.warn(f"Image {i} and those that follow are not written to {folder}: {error}.", stacklevel=2)
            self.writable = False

    def _path(self, kind: str) -> Path:
        assert self.folder is not None
        return local_path(self.folder, "save_images") / self.split / kind
