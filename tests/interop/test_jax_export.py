"""Models written for the JAX system: what its own reader and configuration take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from lightning_vfs import VFSDDPM, CheckpointError
from lightning_vfs.core import ConfigError
from lightning_vfs.interop import from_jax, to_jax
from lightning_vfs.interop.jax_config import config_from_jax

from .conftest import CASES, load_case

EXPRESSIBLE = sorted(path.stem for path in CASES.glob("*.safetensors") if not path.stem.startswith(("middle", "early")))
HEAD_STYLE = {
    "encoder": {"time_token": "timestep"},
    "denoiser": {"film": "concat"},
    "diffusion": {"variance": "fixed_large"},
}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_jax_to_torch_to_jax_gives_every_leaf_bit_for_bit(tmp_path: Path, name: str) -> None:
    to_jax(from_jax(CASES / f"{name}.safetensors"), tmp_path / "out.safetensors")
    arrays, cfg = load_case(name)
    before = {path: value for path, value in arrays.items() if path.startswith("params/")}
    after = {path: value for path, value in load_file(tmp_path / "out.safetensors").items() if path in before}
    assert after.keys() == before.keys()
    for path, value in before.items():
        assert after[path].shape == value.shape and after[path].tobytes() == value.tobytes(), path
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        written = json.loads(file.metadata()["config"])
    assert config_from_jax(written) == config_from_jax(cfg)
    assert set(written) <= set(cfg) | {"use_projection_head", "projection_hidden_dim"}


def test_torch_to_jax_to_torch_gives_every_weight_bit_for_bit(
    tmp_path: Path, tiny_model: Callable[..., VFSDDPM]
) -> None:
    model = tiny_model(**HEAD_STYLE)
    for name in ("out.safetensors", "orbax"):
        to_jax(model, tmp_path / name)
        again = from_jax(tmp_path / name)
        assert again.config == model.config
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_jax_systems_reader_finds_its_trainers_tree(tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint", reason="install the extra `jax`")
    model = from_jax(CASES / "seed_film.safetensors")
    to_jax(model, tmp_path / "ckpt")
    tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(tmp_path / "ckpt")
    assert set(tree) == {"params", "ema_params", "opt_state", "step", "rng", "cfg"}
    assert tree["cfg"] == load_case("seed_film")[1] | {"rescale_learned_sigmas": False}
    assert tree["step"] == 0
    adam, *rest = tree["opt_state"]
    assert rest == [None, None] and set(adam) == {"count", "mu", "nu"}
    kernel = load_case("seed_film")[0]["params/dit/params/Dense_0/kernel"]
    np.testing.assert_array_equal(tree["params"]["dit"]["params"]["Dense_0"]["kernel"], kernel)
    np.testing.assert_array_equal(tree["ema_params"]["dit"]["params"]["Dense_0"]["kernel"], kernel)
    assert adam["mu"]["dit"]["params"]["Dense_0"]["kernel"].shape == kernel.shape


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({}, "encoder.time_token is 'none', there it can only be 'timestep'"),
        ({"diffusion": {"prediction": "v", "variance": "fixed_large"}}, "diffusion.prediction is 'v'"),
        ({"sets": {"held_out": "drop"}}, "sets.held_out is 'drop', there it can only be 'zero_slot'"),
        ({"encoder": {"tokenizer": "per_image_mean"}}, "encoder.tokenizer is 'per_image_mean'"),
        ({"denoiser": {"film": "add"}}, "denoiser.film is 'add', there it can only be 'concat'"),
        ({"denoiser": {"dropout": 0.1, "film": "concat"}}, "denoiser.dropout is 0.1, there it can only be 0.0"),
        ({"diffusion": {"loss": "kl"}}, "diffusion.loss is 'kl'"),
        ({"diffusion": {"variance": "fixed_small"}}, "diffusion.variance is 'fixed_small'"),
    ],
)
def test_what_the_jax_system_cannot_express_is_refused_by_name(
    tmp_path: Path, tiny_model: Callable[..., VFSDDPM], parts: dict, named: str
) -> None:
    parts = {part: HEAD_STYLE.get(part, {}) | values for part, values in parts.items()} or {}
    with pytest.raises(ConfigError) as error:
        to_jax(tiny_model(**(HEAD_STYLE | parts if parts else {})), tmp_path / "out")
    assert named in str(error.value)
    assert not any(tmp_path.iterdir())


def test_an_orbax_folder_is_replaced_and_anything_else_is_left_alone(
    tmp_path: Path, tiny_model: Callable[..., VFSDDPM]
) -> None:
    pytest.importorskip("orbax.checkpoint", reason="install the extra `jax`")
    to_jax(tiny_model(**HEAD_STYLE), tmp_path / "orbax")
    to_jax(tiny_model(set_size=4, **HEAD_STYLE), tmp_path / "orbax")
    assert from_jax(tmp_path / "orbax").config.sets.set_size == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="exists already and is not an Orbax checkpoint"):
        to_jax(tiny_model(**HEAD_STYLE), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "orbax"]
