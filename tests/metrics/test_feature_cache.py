"""The cache of real images' features: its key, and what happens to damaged files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_vfs.data.cache import DamagedCacheWarning
from lightning_vfs.data.cache_folder import default_cache_dir
from lightning_vfs.metrics import feature_cache
from lightning_vfs.metrics.feature_cache import FeatureSource, load_features, pixels_sha256, store_features
from tests.processes import run

IMAGES = (torch.arange(10 * 3 * 4 * 4) % 251).to(torch.uint8).reshape(10, 3, 4, 4)
SOURCE = FeatureSource(
    images_sha256=pixels_sha256([IMAGES]),
    num_images=10,
    extractor="tiny",
    dims={"features": 6, "logits": 4},
    weights_sha256="a" * 64,
    dtype="float32",
    resize="inside",
)


@pytest.fixture
def features() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {layer: torch.randn(10, dim, generator=rng) for layer, dim in SOURCE.dims.items()}


def same(found: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> bool:
    return found is not None and set(found) == set(expected) and all(torch.equal(found[k], expected[k]) for k in found)


# -- the key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 10])
def test_the_hash_of_images_does_not_depend_on_batches(size: int) -> None:
    assert pixels_sha256(IMAGES.split(size)) == SOURCE.images_sha256
    first, *others = IMAGES.split(size)
    for none in (IMAGES[:0], torch.empty(0, 1, 2, 2, dtype=torch.uint8)):
        assert pixels_sha256([none, first, none, *others, none]) == SOURCE.images_sha256


def test_the_hash_of_images_sees_pixels_order_number_and_shape() -> None:
    pixel = IMAGES.clone()
    pixel[9, 2, 3, 3] ^= 1
    others = [
        [IMAGES],
        [pixel],
        [IMAGES.flip(0)],
        [IMAGES[:9]],
        [IMAGES, IMAGES[:1]],
        [IMAGES.reshape(10, 3, 2, 8)],
        [IMAGES.reshape(10, 1, 12, 4)],
        [IMAGES.reshape(30, 1, 4, 4)],
        [IMAGES[:5], IMAGES[5:].reshape(5, 3, 2, 8)],
        [IMAGES[:5].reshape(5, 3, 2, 8), IMAGES[5:]],
        [],
    ]
    assert len({pixels_sha256(images) for images in others}) == len(others)


def test_the_hash_of_images_is_the_same_for_any_layout_in_memory() -> None:
    assert pixels_sha256([IMAGES.contiguous(memory_format=torch.channels_last)]) == SOURCE.images_sha256


def test_images_are_taken_one_batch_at_a_time() -> None:
    alive: list[int] = []

    class Batch(torch.Tensor):
        def __del__(self) -> None:
            alive.pop()

    def batches() -> Any:
        for _ in range(5):
            alive.append(1)
            assert len(alive) <= 2
            yield IMAGES.clone().as_subclass(Batch)

    pixels_sha256(batches())


@pytest.mark.parametrize("images", [IMAGES.float(), IMAGES[0]], ids=["real numbers", "no batch"])
def test_what_are_no_images_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Images to hash are uint8 \(n, c, h, w\); got torch\."):
        pixels_sha256([images])


CHANGES: dict[str, Any] = {
    "images_sha256": "b" * 64,
    "num_images": 9,
    "extractor": "other",
    "dims": {"features": 6},
    "weights_sha256": "b" * 64,
    "dtype": "float64",
    "resize": "outside",
}


def test_everything_that_features_depend_on_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {SOURCE.key} | {replace(SOURCE, **{name: value}).key for name, value in CHANGES.items()}
    monkeypatch.setattr(feature_cache, "FORMAT", 2)
    keys.add(SOURCE.key)
    monkeypatch.setattr(feature_cache, "version", lambda package: "9.9")
    keys.add(SOURCE.key)
    assert set(CHANGES) == set(vars(SOURCE))
    assert len(keys) == len(CHANGES) + 3


def test_the_key_is_the_same_in_every_process_and_for_any_order_of_layers(tmp_path: Path) -> None:
    (tmp_path / "key.py").write_text(
        "from tests.metrics.test_feature_cache import SOURCE; print(SOURCE.key, hash('another in every process'))"
    )
    key, random = run(tmp_path / "key.py").stdout.split()
    assert int(random) != hash("another in every process")
    assert key == SOURCE.key
    assert replace(SOURCE, dims=dict(reversed(SOURCE.dims.items()))).key == SOURCE.key


# -- files ------------------------------------------------------------------------------------------------------------


def test_features_are_loaded_as_they_were_stored(tmp_path: Path, features: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_features(SOURCE, tmp_path) is None
        store_features(SOURCE, features, tmp_path)
        assert same(load_features(SOURCE, tmp_path), features)
        for name, value in CHANGES.items():
            assert load_features(replace(SOURCE, **{name: value}), tmp_path) is None


def test_the_file_is_in_the_package_s_cache_and_says_what_it_holds(features: dict[str, Tensor]) -> None:
    store_features(SOURCE, features)
    path = default_cache_dir() / "features" / f"{SOURCE.key}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["extractor"] == "tiny" and metadata["num_images"] == "10"
    assert path.stat().st_mode & 0o777 == 0o644
    assert same(load_features(SOURCE), features)


def test_features_that_are_slices_are_stored_whole(tmp_path: Path, features: dict[str, Tensor]) -> None:
    wide = torch.cat([features["features"], features["logits"]], dim=1).requires_grad_()
    store_features(SOURCE, {"features": wide[:, :6], "logits": wide[:, 6:]}, tmp_path)
    assert same(load_features(SOURCE, tmp_path), features)


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def rewrite(change: Callable[[dict[str, Tensor]], Any], metadata: dict[str, str] | None = None) -> Any:
    """Writes the file again with other features, and a checksum that is theirs, or with other metadata."""

    def write(path: Path) -> None:
        features = load_file(path)
        features = {name: rows.clone() for name, rows in (change(features) or features).items()}
        own = SOURCE.describe() | {"features_sha256": feature_cache._sha256(features)}
        save_file(features, path, own | metadata if metadata is not None else own)

    return write


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut(0), ""),
        (cut(0.01), ""),
        (cut(0.5), ""),
        (cut(0.99), ""),
        (flip_a_bit, "its features differ from those that were written"),
        (rewrite(lambda f: {k: v[:9] for k, v in f.items()}), r"is torch.float32 \(9, \d\), not torch.float32 \(10, "),
        (rewrite(lambda f: {k: v[:, :2] for k, v in f.items()}), r"is torch.float32 \(10, 2\), not"),
        (rewrite(lambda f: {k: v.double() for k, v in f.items()}), "is torch.float64"),
        (rewrite(lambda f: {"features": f["features"]}), "it has the layers features, not features, logits"),
        (rewrite(lambda f: f["logits"][3, 1].fill_(torch.nan) and None), "layer logits has values that are not finite"),
        (rewrite(lambda f: f["logits"][3, 1].fill_(torch.inf) and None), "layer logits has values that are not finite"),
        (rewrite(lambda f: None, {"extractor": "other"}), "its features differ from those"),
        (lambda path: save_file(load_file(path), path), "its features differ from those"),
        (lambda path: (path.unlink(), path.mkdir()), ""),
    ],
    ids=[
        *("empty", "cut in the header", "half", "nearly whole", "a bit", "fewer images", "narrower", "float64"),
        *("a layer less", "nan", "infinite", "other metadata", "no metadata", "a folder"),
    ],
)
def test_a_damaged_file_is_built_again_with_a_line_that_says_so(
    tmp_path: Path, features: dict[str, Tensor], damage: Callable[[Path], Any], says: str
) -> None:
    store_features(SOURCE, features, tmp_path)
    (path,) = (tmp_path / "features").iterdir()
    damage(path)
    with pytest.warns(
        DamagedCacheWarning, match=rf"{path} is damaged \(.*{says}.*computing the features .* again"
    ) as w:
        assert load_features(SOURCE, tmp_path) is None
    assert len(w) == 1 and "\n" not in str(w[0].message)
    if path.is_file():
        store_features(SOURCE, features, tmp_path)
        assert same(load_features(SOURCE, tmp_path), features)


def test_a_file_under_another_s_name_is_not_taken(tmp_path: Path, features: dict[str, Tensor]) -> None:
    store_features(SOURCE, features, tmp_path)
    other = replace(SOURCE, weights_sha256="b" * 64)
    SOURCE.path(tmp_path).rename(other.path(tmp_path))
    with pytest.warns(DamagedCacheWarning):
        assert load_features(other, tmp_path) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f["features"][0, 0].fill_(torch.nan), "layer features has values that are not finite"),
        (lambda f: f.pop("logits"), "it has the layers features, not features, logits"),
    ],
)
def test_features_that_could_not_be_loaded_are_not_stored(
    tmp_path: Path, features: dict[str, Tensor], change: Callable[[dict[str, Tensor]], Any], says: str
) -> None:
    change(features)
    with pytest.warns(UserWarning, match=f"are not cached in .*{says}"):
        store_features(SOURCE, features, tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, features: dict[str, Tensor]) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"are not cached in .*/file/features/.*LIGHTNING_VFS_CACHE names another"):
        store_features(SOURCE, features, tmp_path / "file")


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, features: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "save_file", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        store_features(SOURCE, features, tmp_path)
    assert not list((tmp_path / "features").iterdir())


def test_a_killed_process_leaves_nothing_under_the_final_name(
    tmp_path: Path, features: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, save: Callable[..., None] = feature_cache.save_file) -> None:
        save(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(feature_cache, "save_file", killed)
    process = multiprocessing.get_context("fork").Process(target=store_features, args=(SOURCE, features, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [file.suffix for file in (tmp_path / "features").iterdir()] == [".tmp"]
    assert load_features(SOURCE, tmp_path) is None


def test_processes_that_write_at_once_do_not_share_a_temporary_file(
    tmp_path: Path, features: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    save = feature_cache.save_file

    def at_once(tensors: Any, path: Path, metadata: Any) -> None:
        names.append(path.name)
        if len(names) < 3:
            store_features(SOURCE, features, tmp_path)
        save(tensors, path, metadata)

    monkeypatch.setattr(feature_cache, "save_file", at_once)
    store_features(SOURCE, features, tmp_path)
    assert len(set(names)) == 3
    assert [file.name for file in (tmp_path / "features").iterdir()] == [f"{SOURCE.key}.safetensors"]
    assert same(load_features(SOURCE, tmp_path), features)
