"""A cache on disk for decoded images: one memory-mapped file for each content."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError, safe_open

from lightning_vfs.core.errors import DataError
from lightning_vfs.core.files import replacing, try_folder
from lightning_vfs.data.cache_folder import FOLDER, Lease, make_space, mark_used, readable
from lightning_vfs.data.images import ClassImages, map_images
from lightning_vfs.data.tensor_file import TensorFile, check, mark_whole


class DamagedCacheWarning(UserWarning):
    """A cache file could not be read, and is rebuilt."""


def content_key(content: Any) -> str:
    """SHA-256 of everything that decides the pixels, given as plain values (what JSON can hold)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def warn_of_damage(path: Path, error: Exception) -> None:
    """Warn that a cache file is damaged and is rebuilt."""
    warnings.warn(
        f"The cache file {path} is damaged ({error}): decoding the images again.", DamagedCacheWarning, stacklevel=3
    )


def cached_images(folder: Path, name: str, key: str, build: Callable[[], ClassImages], source: str = "") -> ClassImages:
    """Images from the cache, memory-mapped; built and stored first if they are not in it.

    Several processes can do so at once: a file appears complete, under its final name.

    Args:
        folder: of the cache; made if necessary.
        name: prefix of the file's name, for people.
        key: as `content_key` gives it.
        build: decodes the images.
        source: the folder or file that they are made of, for people.

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
            f"--data.cache_dir or the environment variable {FOLDER}."
        ) from error
    images = build()
    make_space(folder, images.images.nbytes, rank_zero_info)
    try:
        _write(path, images, name, source)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"The decoded images cannot be written to the cache {folder}: {error}. They take "
            f"{readable(images.images.nbytes)}; choose another folder by --data.cache_dir or "
            f"the environment variable {FOLDER}."
        ) from error
    return _read(path)


def _read(path: Path) -> ClassImages:
    lease = Lease(path)
    check(path)
    mark_used(path.with_suffix(".json"))
    # safetensors maps the file privately: nothing that is written to the tensor reaches the file.
    with safe_open(path, framework="pt") as file:
        metadata, labels = file.metadata(), file.get_tensor("labels").numpy()
    class_names = json.loads(metadata["class_names"])
    images = ClassImages(map_images(path), class_names, labels, mapped=path, key=metadata["sha256"])
    del lease  # which the images have by themselves
    return images


def _write(path: Path, images: ClassImages, name: str, source: str) -> None:
    pixels, labels = images.images, images.labels
    about = {"about": f"{name}: {describe(pixels.shape)}", "source": source}
    layout = {"images": ("U8", pixels.shape), "labels": ("I64", labels.shape)}
    with replacing(path) as temporary:
        file = TensorFile(temporary, layout, {"class_names": json.dumps(images.class_names), **about})
        file.write("images", pixels.numpy())
        file.write("labels", np.asarray(labels))
        file.finish()
    mark_whole(path)


def describe(shape: tuple[int, ...]) -> str:
    """Images (N, c, h, w) in words."""
    count, channels, height, width = shape
    return f"{count:,} images of {height} x {width}, {'grey' if channels == 1 else 'RGB'}"
