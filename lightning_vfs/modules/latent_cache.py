"""Latents of all images of a split, encoded once and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import hash_of, try_folder
from lightning_vfs.core.progress import progress
from lightning_vfs.data.cache import content_key, describe, warn_of_damage
from lightning_vfs.data.cache_folder import FOLDER, Lease, make_space, mark_used, readable
from lightning_vfs.data.images import ClassImages, to_float
from lightning_vfs.data.mapped import MappedRows
from lightning_vfs.data.module import SetDataModule, Split
from lightning_vfs.data.tensor_file import TensorFile, check, mark_whole
from lightning_vfs.modules.latent import Autoencoder

LatentType = Literal["float32", "bfloat16"]

FORMAT = 1
"""Version of the files; to be raised when the same key would give other latents."""

LATENTS = "latents"


_SPLITS: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""Splits whose losses are computed in a stage of the trainer."""


def check_cache_latents(dtype: str | None, config: VFSConfig) -> None:
    """Refuse an option `cache_latents` that is not allowed, or is not for this model.

    Raises:
        ConfigError: what is.
    """
    if dtype is not None and dtype not in get_args(LatentType):
        raise ConfigError(f"cache_latents is {dtype!r}; allowed: 'float32', 'bfloat16', or null.")
    if dtype is not None and not config.latent.autoencoder:
        raise ConfigError(
            f"cache_latents is {dtype!r}, but this model diffuses pixels: leave it out, or set "
            "--model.config.latent.autoencoder."
        )


def take_cached_latents(trainer: Trainer, autoencoder: Autoencoder, dtype: LatentType, stage: str) -> None:
    """Have the trainer's data module deliver cached latents of the splits of a stage, which are encoded if necessary.

    Splits whose images are augmented are left out.

    Raises:
        ConfigError: the trainer has no SetDataModule.
        DataError: the cache cannot be written.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, SetDataModule):
        raise ConfigError(
            f"cache_latents is {dtype!r}, but the trainer has no SetDataModule, whose images could be encoded: pass "
            "one, trainer.fit(model, datamodule=...), or leave it out."
        )
    for name in _SPLITS.get(stage, ()):
        if data.has_split(name) and not data.is_augmented(name):
            latents = cached_latents(
                autoencoder,
                data.split(name),
                data.cache_dir,
                dtype,
                trainer.strategy.root_device,
                data.batch_size * data.set_size,
                rank_zero_info,
            )
            data.use_latents(name, latents)


def cached_latents(
    autoencoder: Autoencoder,
    images: ClassImages,
    folder: Path,
    dtype: LatentType,
    device: torch.device,
    at_once: int,
    say: Callable[[str], object],
) -> MappedRows:
    """Latents (N, c, h, w) of all images of a split, encoded if they are not in the cache yet.

    One process of a machine encodes while others wait; an interrupted encoding goes on. The key is made of the images'
    and the autoencoder's contents.

    Args:
        autoencoder: encodes them.
        images: the split.
        folder: of the cache.
        dtype: in which they are kept; in float32 they are what `autoencoder.encode` gives.
        device: to encode on.
        at_once: images that are encoded together, which should be as many as in a training batch: the same shapes give
            the same numbers to the last digit.
        say: is called with a line on what is about to be done.

    Raises:
        DataError: the cache cannot be written.
    """
    content = {
        "images": images.key or hash_of(images.images.numpy()), "count": len(images), "dtype": dtype,
        "autoencoder": autoencoder.weights_sha256, "config": autoencoder.settings, "format": FORMAT,
    }  # fmt: skip
    path = folder / f"latents-{content_key(content)}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    try:
        try_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _read(path)  # another process may have been first
            if found is None:
                _encode_all(autoencoder, images, path, dtype, device, at_once, say)
        path.with_suffix(".lock").unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"Latents cannot be written to the cache {folder}: {error}. Choose another folder by --data.cache_dir or "
            f"the environment variable {FOLDER}, or leave out --model.cache_latents."
        ) from error
    found = found or _read(path)
    assert found is not None
    return found


def _read(path: Path) -> MappedRows | None:
    try:
        lease = Lease(path)
    except OSError:
        return None
    try:
        check(path)
    except (OSError, ValueError) as error:
        warn_of_damage(path, error)
        path.unlink()
        return None
    mark_used(path.with_suffix(".json"))
    rows = MappedRows(path, LATENTS)
    del lease  # which the rows have by themselves
    return rows


def _encode_all(
    autoencoder: Autoencoder,
    images: ClassImages,
    path: Path,
    dtype: LatentType,
    device: torch.device,
    at_once: int,
    say: Callable[[str], object],
) -> None:
    def encoded(rows: np.ndarray) -> torch.Tensor:
        padded = np.resize(rows, at_once)  # the last ones are encoded with the same shape
        return autoencoder.encode(to_float(images.uint8(padded).to(device)))[: len(rows)].cpu()

    count, shape = len(images), tuple(encoded(np.zeros(1, dtype=np.int64)).shape[1:])
    kind, size = ("F32", 4) if dtype == "float32" else ("BF16", 2)
    pixels = tuple(images.uint8([0]).shape[1:])
    about = f"latents of {describe((count, *pixels))}, {dtype}"
    unfinished = path.with_suffix(".partial")
    needed = count * size * int(np.prod(shape))
    make_space(path.parent, 0 if unfinished.exists() else needed, say)
    layout = {LATENTS: (kind, (count, *shape)), "status": ("U8", (count,))}
    file = TensorFile(unfinished, layout, {"about": about, "source": str(autoencoder.folder.absolute())})
    try:
        rows = np.flatnonzero(file.read("status") == 0)
        say(f"Encoding {len(rows):,} images into the cache {path.parent} ({readable(needed)}) ...")
        bar = progress("Encoding", count, "images", unit="image", initial=count - len(rows))
        try:
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                values = encoded(some)
                stored = values if dtype == "float32" else values.to(torch.bfloat16).view(torch.int16)
                file.write(LATENTS, stored.numpy(), some)
                file.flush()
                file.write("status", np.ones(len(some), dtype=np.uint8), some)
                bar.update(len(some))
        finally:
            bar.close()
        file.finish()
    finally:
        file.close()
    unfinished.replace(path)
    mark_whole(path)
