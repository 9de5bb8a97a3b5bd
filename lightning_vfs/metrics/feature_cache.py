"""A cache on disk for the features and figures of real images, under a key of everything that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_vfs.core.files import hash_of, replacing
from lightning_vfs.data.cache import DamagedCacheWarning, content_key
from lightning_vfs.data.cache_folder import default_cache_dir, make_space, mark_used
from lightning_vfs.data.images import ClassImages

FORMAT = 1
"""Version of the files; to be raised when the same key would give other features."""


def pixels_sha256(images: Iterable[Tensor]) -> str:
    """SHA-256 of images with their shapes, in order, however they are divided into batches.

    Args:
        images: batches uint8 (n, c, h, w); one at a time is held in memory.

    Raises:
        ValueError: images of another type or shape.
    """
    sha, count = hashlib.sha256(), 0
    shape: tuple[int, ...] = (0, 0, 0)
    for batch in images:
        if batch.dtype != torch.uint8 or batch.ndim != 4:
            raise ValueError(f"Images to hash are uint8 (n, c, h, w); got {batch.dtype} {tuple(batch.shape)}.")
        if len(batch) == 0:
            continue
        if count and tuple(batch.shape[1:]) != shape:
            sha.update(_run(shape, count))
            count = 0
        shape, count = tuple(batch.shape[1:]), count + len(batch)
        sha.update(batch.cpu().contiguous().numpy().data)
    sha.update(_run(shape, count))
    return sha.hexdigest()


def split_sha256(images: ClassImages) -> str:
    """`pixels_sha256` of all images of a split, in order; read from the cache if it is known of images of this key.

    Warns:
        UserWarning: it cannot be written.
    """
    key = None if images.key is None else content_key({"pixels of": images.key})
    path = default_cache_dir() / "features" / f"{key}.json"
    if key is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            stored = json.loads(path.read_text())
            if stored["sha256"] == content_key([key, stored["pixels_sha256"]]):
                mark_used(path)
                return str(stored["pixels_sha256"])
    size, everything = 4096, np.arange(len(images))
    found = pixels_sha256(images.uint8(everything[i : i + size]) for i in range(0, len(everything), size))
    if key is not None:
        try:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps({"pixels_sha256": found, "sha256": content_key([key, found])}) + "\n")
        except OSError as error:
            warnings.warn(f"The hash of the images is not cached in {path} ({error}).", stacklevel=2)
    return found


def _run(shape: tuple[int, ...], count: int) -> bytes:
    """Ends a run of images of one shape; at its end, so that it can be distinguished from pixels, from the back."""
    return np.array([*shape, count], dtype="<i8").tobytes()


@dataclass(frozen=True)
class FeatureSource:
    """Everything that the features of real images depend on.

    Args:
        images_sha256: `pixels_sha256` of the images, or of those that they are chosen from, with the choice.
        num_images: how many they are (n).
        extractor: its name.
        dims: width of every layer's features (d), by layer (`ImageFeatures.dims`).
        weights_sha256: of the extractor's weights.
        dtype: that the extractor computes in.
        resize: rule by which images get the extractor's size.
    """

    images_sha256: str
    num_images: int
    extractor: str
    dims: Mapping[str, int]
    weights_sha256: str
    dtype: str
    resize: str

    def describe(self) -> dict[str, str]:
        """All of it as strings, with the versions of torch-fidelity and of the files; the same in every process."""
        values = asdict(self) | {"torch_fidelity": version("torch-fidelity"), "format": FORMAT}
        return {name: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for name, v in values.items()}

    @property
    def key(self) -> str:
        """SHA-256 of `describe`."""
        return content_key(self.describe())

    def path(self, folder: Path | None = None) -> Path:
        """The file of these features in a cache folder, by default the package's."""
        return (folder or default_cache_dir()) / "features" / f"{self.key}.safetensors"


def load_features(source: FeatureSource, folder: Path | None = None) -> dict[str, Tensor] | None:
    """Features (n, d) float32 by layer; None if there are none yet, or no usable ones.

    Args:
        source: what they are features of.
        folder: of the cache; None for the package's.

    Warns:
        DamagedCacheWarning: the file is damaged; the features are to be computed again.
    """
    path = source.path(folder)
    try:
        with safe_open(path, framework="pt") as file:
            features = {layer: file.get_tensor(layer) for layer in file.keys()}  # noqa: SIM118 - it is no dict
            metadata = file.metadata()
        problem = _problem(source, features)
        if not problem and metadata != source.describe() | {"features_sha256": _sha256(features)}:
            problem = "its features differ from those that were written"
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        problem = str(error)
    if problem:
        warnings.warn(
            f"The cache file {path} is damaged ({problem}): computing the features of the real images again.",
            DamagedCacheWarning,
            stacklevel=2,
        )
        return None
    mark_used(path)
    return features


def store_features(source: FeatureSource, features: Mapping[str, Tensor], folder: Path | None = None) -> None:
    """Write features (n, d) float32 by layer; the file appears complete, also where several processes write it.

    Args:
        source: what they are features of.
        features: as `load_features` is to give them, on any device.
        folder: of the cache, which is made if necessary; None for the package's.

    Warns:
        UserWarning: they cannot be written, or are not finite or of another shape; the evaluation can continue.
    """
    path = source.path(folder)
    tensors = {layer: rows.detach().cpu().contiguous() for layer, rows in features.items()}
    problem = _problem(source, tensors)
    if not problem:
        try:
            make_space(path.parents[1], sum(rows.nbytes for rows in tensors.values()), rank_zero_info)
            with replacing(path) as temporary:
                save_file(tensors, temporary, source.describe() | {"features_sha256": _sha256(tensors)})
        except (SafetensorError, OSError) as error:
            problem = f"{error}; the environment variable LIGHTNING_VFS_CACHE names another folder"
    if problem:
        warnings.warn(f"Features of real images are not cached in {path} ({problem}).", stacklevel=2)


def cached_figures(
    content: Mapping[str, Any], compute: Callable[[], dict[str, float]], folder: Path | None = None
) -> dict[str, float]:
    """Figures of real images by name, from the cache; computed and stored first if they are not in it.

    Args:
        content: everything that they depend on, as plain values.
        compute: computes them; not stored where one is not finite.
        folder: of the cache; None for the package's.

    Warns:
        DamagedCacheWarning: the file is damaged; they are computed again.
        UserWarning: they cannot be written.
    """
    figures = load_figures(content, folder)
    if figures is None:
        figures = compute()
        store_figures(content, figures, folder)
    return figures


def load_figures(content: Mapping[str, Any], folder: Path | None = None) -> dict[str, float] | None:
    """Figures by name that `store_figures` stored for the same content; None if there are none, or no usable ones.

    Warns:
        DamagedCacheWarning: the file is damaged; they are to be computed again.
    """
    path = _figures_path(content, folder)
    try:
        stored = json.loads(path.read_text())
        figures: dict[str, float] = stored["figures"]
        if stored["sha256"] == content_key([path.stem, figures]):
            mark_used(path)
            return figures
        problem = "its figures differ from those that were written"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = str(error) or type(error).__name__
    warnings.warn(
        f"The cache file {path} is damaged ({problem}): computing the figures of the real images again.",
        DamagedCacheWarning,
        stacklevel=2,
    )
    return None


def store_figures(content: Mapping[str, Any], figures: Mapping[str, float], folder: Path | None = None) -> None:
    """Write figures by name, unless one is not finite.

    Warns:
        UserWarning: they cannot be written.
    """
    path = _figures_path(content, folder)
    if all(map(math.isfinite, figures.values())):
        try:
            with replacing(path) as temporary:
                sha256 = content_key([path.stem, figures])
                temporary.write_text(json.dumps({"figures": figures, "sha256": sha256}) + "\n")
        except OSError as error:
            warnings.warn(f"Figures of real images are not cached in {path} ({error}).", stacklevel=2)


def _figures_path(content: Mapping[str, Any], folder: Path | None) -> Path:
    return (folder or default_cache_dir()) / "features" / f"{content_key(content)}.json"


def _problem(source: FeatureSource, features: Mapping[str, Tensor]) -> str:
    """Why these cannot be the features of the source; empty where they can."""
    if set(features) != set(source.dims):
        return f"it has the layers {', '.join(sorted(features))}, not {', '.join(sorted(source.dims))}"
    for layer, rows in features.items():
        expected = (source.num_images, source.dims[layer])
        if rows.dtype != torch.float32 or tuple(rows.shape) != expected:
            return f"layer {layer} is {rows.dtype} {tuple(rows.shape)}, not torch.float32 {expected}"
        if not rows.isfinite().all():
            return f"layer {layer} has values that are not finite"
    return ""


def _sha256(features: Mapping[str, Tensor]) -> str:
    return hash_of(*(part for layer in sorted(features) for part in (layer, features[layer].numpy())))
