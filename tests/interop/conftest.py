"""Cases that the JAX system computed, and copies of them with something changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

CASES = Path(__file__).parents[1] / "reference"


def load_case(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and configuration of a case."""
    path = CASES / f"{name}.safetensors"
    with safe_open(path, "np") as file:
        return load_file(path), json.loads(file.metadata()["config"])


def nested(name: str) -> dict[str, Any]:
    """The parameters of a case as a tree of dictionaries."""
    tree: dict[str, Any] = {}
    for path, value in load_case(name)[0].items():
        if path.startswith("params/"):
            *parents, last = path.split("/")[1:]
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    return tree


def mapped(function: Callable[[np.ndarray], np.ndarray], tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: mapped(function, value) if isinstance(value, dict) else function(value) for name, value in tree.items()
    }


def trainer_tree(name: str, replicas: int = 0, apart: float = 0.0) -> dict[str, Any]:
    """What the JAX system's trainer saves: `ema_params` are half of `params`; replicas may differ by `apart` each."""

    def copies(value: np.ndarray) -> np.ndarray:
        return np.stack([value + np.float32(apart * i) for i in range(replicas)]) if replicas else value

    params = nested(name)
    moments = {"count": np.asarray(7), "mu": mapped(np.copy, params), "nu": mapped(np.square, params)}
    return {
        "params": mapped(copies, params),
        "ema_params": mapped(copies, mapped(lambda value: value * np.float32(0.5), params)),
        "opt_state": [mapped(copies, moments), None, None],
        "step": 7,
        "rng": np.zeros(2, np.uint32),
        "cfg": load_case(name)[1],
    }


@pytest.fixture(scope="session")
def orbax_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a checkpoint by the code that the JAX system's trainer calls."""
    ocp = pytest.importorskip("orbax.checkpoint", reason="install the extra `jax`")

    def write(name: str = "head_variational", **replicas: Any) -> Path:
        path = tmp_path_factory.mktemp("orbax") / "ckpt_000007"
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(path, trainer_tree(name, **replicas), force=True)
        return path

    return write


@pytest.fixture
def changed_case(tmp_path: Path) -> Callable[..., Path]:
    """Writes a case with changed arrays or configuration."""

    def write(name: str, change: Callable[[dict[str, np.ndarray]], None] | None = None, **cfg: Any) -> Path:
        arrays, config = load_case(name)
        if change is not None:
            change(arrays)
        save_file(arrays, tmp_path / "case.safetensors", {"config": json.dumps({**config, **cfg})})
        return tmp_path / "case.safetensors"

    return write
