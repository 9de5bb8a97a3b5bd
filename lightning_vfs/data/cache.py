"""A cache on disk for decoded images: one memory-mapped file for each content."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lightning_vfs.core.errors import DataError
from lightning_vfs.core.files import local_path, replacing, try_folder
from lightning_vfs.data.images import ClassImages, map_images


class DamagedCacheWarning(UserWarning):
    """A cache file could not be read, and is rebuilt."""


def default_cache_dir() -> Path:
    """`$LIGHTNING_VFS_CACHE`, or `~/.cache/lightning_vfs`."""
    return local_path(os.environ.get("LIGHTNING_VFS_CACHE") or "~/.cache/lightning_vfs", "LIGHTNING_VFS_CACHE")


def content_key(content: Any) -> str:
    """SHA-256 of everything that decides the pixels, given as plain values (what JSON can hold)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def warn_of_damage(path: Path, error: Exception) -> None:
    """Warn that a cache file is damaged and is rebuilt."""
    warnings.warn(
        f"The cache file {path} is damaged ({error}): decoding the images again.", DamagedCacheWarning, stacklevel=3
    )


def cached_images(folder: Path, name: str, key: str, build: Callable[[], ClassImages]) -> ClassImages:
    """Images from the cache, memory-mapped; built and stored first if they are not in it.

    Several processes can do so at once: a file appears complete, under its final name.

    Args:
        folder: of the cache; made if necessary.
        name: prefix of the file's name, for people.
        key: as `content_key` gives it.
        build: decodes the images.

    Warns:
        DamagedCacheWarning: the file was damaged; it is built again.

    Raises:
        DataError: the cache cannot be written; and whatever `build` raises.
    """
    path = folder / f"{name}-{key}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            warn_of_damage(path, error)
    try:
        try_folder(folder)
    except OSError as error:
        raise DataError(
            f"Decoded images cannot be written to the cache {folder}: {error}. Choose another folder by "
            "--data.cache_dir or the environment variable LIGHTNING_VFS_CACHE."
        ) from error
    images = build()
    try:
        _write(path, images)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"The decoded images cannot be written to the cache {folder}: {error}. They take "
            f"{images.images.nbytes / 2**20:,.0f} MiB; choose another folder by --data.cache_dir or "
            "the environment variable LIGHTNING_VFS_CACHE."
        ) from error
    return _read(path)


def _read(path: Path) -> ClassImages:
    # safetensors maps the file privately: nothing that is written to the tensor reaches the file.
    with safe_open(path, framework="pt") as file:
        class_names, labels = json.loads(file.metadata()["class_names"]), file.get_tensor("labels").numpy()
    return ClassImages(map_images(path), class_names, labels, mapped=path)


def _write(path: Path, images: ClassImages) -> None:
    tensors = {"images": images.images, "labels": torch.from_numpy(images.labels)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"class_names": json.dumps(images.class_names)})
