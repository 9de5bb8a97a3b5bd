"""Checkpoints of the JAX system in every format, and what is said of bad ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lightning_vfs import VFSDDPM, CheckpointError
from lightning_vfs.core import StaleSetSizeWarning
from lightning_vfs.interop import from_jax

from ..processes import imported_by
from .conftest import CASES, load_case, nested, trainer_tree

HEAD, SEED = CASES / "head_film.safetensors", CASES / "seed_film.safetensors"


def same_weights(one: VFSDDPM, other: VFSDDPM, factor: float = 1.0) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name] * factor) for name, value in one.state_dict().items())


@pytest.mark.parametrize("replicas", [0, 1, 3])
def test_an_orbax_folder_gives_the_weights_and_their_average(orbax_folder: Callable[..., Path], replicas: int) -> None:
    expected = from_jax(CASES / "head_variational.safetensors")
    path = orbax_folder(replicas=replicas)
    assert same_weights(from_jax(path), expected)
    assert same_weights(from_jax(path, ema=True), expected, 0.5)
    assert from_jax(path).config == expected.config


@pytest.mark.parametrize("module", ["tensorstore", "msgpack"])
def test_what_reads_a_format_is_an_extra(
    module: str, orbax_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.msgpack").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CheckpointError, match=rf"pip install 'lightning_vfs\[jax-import\]' .*{module}"):
        from_jax(orbax_folder() if module == "tensorstore" else tmp_path / "model.msgpack")
    from_jax(HEAD)


def test_reading_an_orbax_folder_loads_no_jax(orbax_folder: Callable[..., Path], tmp_path: Path) -> None:
    reading = f"from lightning_vfs.interop import from_jax; from_jax({str(orbax_folder())!r})"
    assert imported_by(tmp_path, reading, ["jax", "flax", "orbax"]) == []


def test_replicas_that_differ_are_refused_and_one_can_be_chosen(orbax_folder: Callable[..., Path]) -> None:
    path = orbax_folder(replicas=2, apart=0.25)
    with pytest.raises(CheckpointError, match=r"The 2 replicas .* differ in \d+ leaves, by up to 0.25.*replica=0"):
        from_jax(path)
    assert same_weights(from_jax(path, replica=0), from_jax(CASES / "head_variational.safetensors"))
    assert not same_weights(from_jax(path, replica=1), from_jax(path, replica=0))
    with pytest.raises(CheckpointError, match="2 replicas, 0 to 1; there is no replica 2"):
        from_jax(path, replica=2)


def test_an_axis_that_only_some_leaves_have_is_no_replica_axis(changed_case: Callable[..., Path]) -> None:
    def add_axis(arrays: dict[str, np.ndarray]) -> None:
        arrays["params/dit/params/Dense_0/bias"] = arrays["params/dit/params/Dense_0/bias"][None]

    with pytest.raises(CheckpointError, match=r"misshaped: dit/params/Dense_0/bias .* is \(1, 48\), expected \(48,\)"):
        from_jax(changed_case("head_film", add_axis))


@pytest.mark.parametrize("whole", [True, False])
def test_a_flax_msgpack_file(tmp_path: Path, whole: bool) -> None:
    serialization = pytest.importorskip("flax.serialization", reason="install the extra `jax`")
    path = tmp_path / "model.msgpack"
    path.write_bytes(serialization.to_bytes(trainer_tree("head_film") if whole else nested("head_film")))
    if whole:
        assert same_weights(from_jax(path), from_jax(HEAD))
        assert same_weights(from_jax(path, ema=True), from_jax(HEAD), 0.5)
    else:
        with pytest.raises(CheckpointError, match=r"holds no configuration.*cfg="):
            from_jax(path)
        assert same_weights(from_jax(path, cfg=load_case("head_film")[1]), from_jax(HEAD))


def test_arrays_that_flax_cuts_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serialization = pytest.importorskip("flax.serialization", reason="install the extra `jax`")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    (tmp_path / "model.msgpack").write_bytes(
        serialization.msgpack_serialize(trainer_tree("head_film") | {"opt_state": {}})
    )
    assert same_weights(from_jax(tmp_path / "model.msgpack"), from_jax(HEAD))


def test_weights_win_over_a_stale_sample_size(changed_case: Callable[..., Path]) -> None:
    with pytest.warns(StaleSetSizeWarning, match=r"sets of 5.*sets of 6"):
        assert from_jax(changed_case("head_film", sample_size=5)).config.sets.set_size == 6


def test_every_wrong_leaf_is_listed_with_both_names(changed_case: Callable[..., Path]) -> None:
    def damage(arrays: dict[str, np.ndarray]) -> None:
        del arrays["params/dit/params/Dense_0/bias"]
        arrays["params/dit/params/surprise"] = np.zeros(1, np.float32)
        arrays["params/encoder/params/mlp_dense/kernel"] = np.zeros((32, 7), np.float32)

    with pytest.raises(CheckpointError) as error:
        from_jax(changed_case("seed_film", damage))
    for line in (
        "missing: dit/params/Dense_0/bias (denoiser.context_proj.bias)",
        "extra: dit/params/surprise (1,)",
        "misshaped: encoder/params/mlp_dense/kernel (encoder.head.weight) is (32, 7), expected (32, 32)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("mode_conditioning", "lag", "never worked"),
        ("encoder_mode", "vit", "other layers"),
        ("use_vae", True, "latents"),
        ("class_cond", True, "has other layers"),
    ],
)
def test_options_that_cannot_be_read_are_refused_with_the_reason(
    changed_case: Callable[..., Path], option: str, value: Any, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"{option} = {value!r}; only .* {reason}"):
        from_jax(changed_case("seed_film", **{option: value}))


def test_a_configuration_of_another_system(changed_case: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="cannot be expressed here: EncoderConfig.pool is 'max'"):
        from_jax(changed_case("seed_film", pool="max"))
    arrays = load_case("seed_film")[0]
    path = changed_case("seed_film")
    save_file(arrays, path, {"config": json.dumps({"hdim": 32})})
    with pytest.raises(CheckpointError, match=r"cfg has no '\w+': it is of another system"):
        from_jax(path)


def test_averaged_weights_that_are_not_there() -> None:
    with pytest.raises(CheckpointError, match="no averaged weights"):
        from_jax(SEED, ema=True)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file or folder"):
        from_jax(tmp_path / "missing.safetensors")
    for name in ("text.safetensors", "text.msgpack"):
        (tmp_path / name).write_text("hello, this is a text")
        with pytest.raises(CheckpointError, match=r"text.\w+ is damaged or not|text.\w+ is not"):
            from_jax(tmp_path / name)
    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="it has no leaves `params/"):
        from_jax(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not an Orbax checkpoint: there is no _METADATA in it"):
        from_jax(tmp_path)


def test_a_damaged_orbax_folder_and_one_of_several_checkpoints(orbax_folder: Callable[..., Path]) -> None:
    path = orbax_folder(name="head_film")
    with pytest.raises(CheckpointError, match="it has the checkpoints ckpt_000007 in it: name one"):
        from_jax(path.parent)
    for file in (path / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for file in path.glob("ocdbt.process_*/d/*"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged: an array that _METADATA lists cannot be read"):
        from_jax(path)
