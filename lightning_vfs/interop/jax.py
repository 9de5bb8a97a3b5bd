"""Models of the JAX system, in and out. Reading needs no jax."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.contract import resolve_set_size
from lightning_vfs.core.errors import CheckpointError
from lightning_vfs.core.files import local_path, replacing
from lightning_vfs.core.trust import reading
from lightning_vfs.interop.jax_config import config_from_jax, dialect_of_cfg, jax_config_of
from lightning_vfs.interop.jax_files import ORBAX_TREE, Flat, read_flat
from lightning_vfs.interop.jax_parameters import from_jax_params, jax_shapes, to_jax_params, wrong_leaves
from lightning_vfs.interop.models import model_of, shapes_of
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.modules.declared import check_declared_size
from lightning_vfs.training.state import Moments, TrainingState, arrays

SPT_SCALE = "encoder/params/to_patch_embedding/norm/scale"
CONTEXT_KERNEL = "dit/params/Dense_0/kernel"
CONTEXT_SCALE = "dit/params/DiTBlock_0/context_scale"

Trees = dict[str, dict[str, np.ndarray]]


def from_jax(
    path: str | Path, ema: bool = False, *, cfg: Mapping[str, Any] | None = None, replica: int | None = None
) -> VFSDDPM:
    """Model of a checkpoint of the JAX system, in eval mode.

    Args:
        path: an Orbax checkpoint folder, a flat safetensors file, or a Flax msgpack file.
        ema: use the averaged weights, `ema_params`, instead of `params`.
        cfg: the system's flat configuration, for a file that holds none.
        replica: which replica to take of a run whose devices hold different weights; by default they must agree.

    Returns:
        The model; the weights' set size overrides a stale `sample_size`, with a warning.

    Raises:
        CheckpointError: the file is damaged or something else, its configuration has an option that is not known here,
            its replicas differ, or leaves are missing, extra or misshaped; all of them are listed.
    """
    return model_of(read_jax(path, cfg, replica), averaged=ema)


def to_jax(model: VFSDDPM, path: str | Path) -> None:
    """Write a model as the JAX system's trainer does: a flat safetensors file, or an Orbax folder for any other name.

    In an Orbax folder `ema_params` are the weights too, and AdamW's moments are zero, as before the first step.

    Raises:
        ConfigError: the system cannot express the model; the message names the options.
        CheckpointError: the path is a folder, but not an Orbax checkpoint, or orbax is not installed.
    """
    write_jax(TrainingState(model.config, arrays(model.state_dict())), path)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_jax(path: str | Path, cfg: Mapping[str, Any] | None = None, replica: int | None = None) -> TrainingState:
    """What training needs of a checkpoint of the JAX system to resume; arguments and errors as `from_jax`."""
    path = local_path(path, "The checkpoint's path")
    flat = read_flat(path)
    with reading(path):
        return _state_of(flat, path, cfg, replica)


def _state_of(flat: Flat, path: Path, cfg: Mapping[str, Any] | None, replica: int | None) -> TrainingState:
    cfg = dict(cfg) if cfg is not None else _below(flat, "cfg")
    trees = _trees(flat)
    if not trees["params"]:
        raise CheckpointError(f"{path} is not a checkpoint of the JAX system: it has no leaves `params/...`.")
    if not cfg:
        raise CheckpointError(
            f"{path} holds no configuration: it has no `cfg` next to the parameters. Give the system's flat one: "
            "from_jax(path, cfg={...}), or --cfg FILE with JSON."
        )
    config = _seen_in_the_weights(config_from_jax({name: _plain(value) for name, value in cfg.items()}), trees)
    check_declared_size(config, trees["params"], path)
    trees = _without_replicas(trees, jax_shapes(shapes_of(config), config), replica, path)
    if SPT_SCALE in trees["params"]:
        config = resolve_set_size(config, weights=len(trees["params"][SPT_SCALE]))
    expected = jax_shapes(shapes_of(config), config)
    wrong = {name: wrong_leaves(tree, expected, config) for name, tree in trees.items() if tree}
    if any(wrong.values()):
        listed = "".join(f"\n  {name}: {line}" for name, lines in wrong.items() for line in lines)
        raise CheckpointError(f"{path} does not fit its own configuration:{listed}")
    ours = {name: from_jax_params(tree, config) for name, tree in trees.items() if tree}
    moments = Moments(ours["mu"], ours["nu"]) if "mu" in ours and "nu" in ours else None
    step = int(np.max(flat.get("step", 0)))
    return TrainingState(config, ours["params"], ours.get("ema_params"), moments, step)


def _below(flat: Flat, prefix: str) -> Flat:
    """Entries of a flat tree under a prefix, without it."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in flat.items() if name.startswith(f"{prefix}/")}


def _trees(flat: Flat) -> Trees:
    """Parameters, averaged parameters, and AdamW's moments; empty where there are none."""
    trees = {name: _below(flat, name) for name in ("params", "ema_params")}
    if not any(trees.values()) and SPT_SCALE in flat:
        trees["params"] = {name: value for name, value in flat.items() if not name.startswith("cfg/")}
    optimizer = _below(flat, "opt_state")
    for moment in ("mu", "nu"):
        # optax nests its states by transformation: `0/mu/...`, or deeper in a chain.
        paths = [name.split("/") for name in optimizer]
        trees[moment] = {
            "/".join(parts[parts.index(moment) + 1 :]): optimizer["/".join(parts)] for parts in paths if moment in parts
        }
    return trees


def _plain(value: Any) -> Any:
    """A number, a truth value or a string, of an array of one."""
    return value.reshape(-1)[0].item() if isinstance(value, np.ndarray) else value


def _seen_in_the_weights(config: VFSConfig, trees: Trees) -> VFSConfig:
    """What states of the system between its first and its last left out of `cfg`: how the context is joined."""
    params, denoiser = trees["params"], config.denoiser
    joined = params.get(CONTEXT_KERNEL)
    if joined is not None and joined.shape[-2:] == (config.encoder.context_dim, denoiser.dim):
        denoiser = replace(denoiser, film="add")
    if denoiser.film == "add" and denoiser.normalize_condition:
        denoiser = replace(denoiser, normalize_condition=CONTEXT_SCALE in params)
    return replace(config, denoiser=denoiser)


def _without_replicas(trees: Trees, expected: Mapping[str, tuple[int, ...]], replica: int | None, path: Path) -> Trees:
    """The trees without the leading axis over devices, where every leaf has it.

    Raises:
        CheckpointError: replicas differ and none is chosen, or the chosen one is not there.
    """
    known = {tree: {name: leaf for name, leaf in trees[tree].items() if name in expected} for tree in trees}
    leaves = [(expected[name], leaf) for tree in known.values() for name, leaf in tree.items()]
    if not leaves or not all(leaf.ndim == len(shape) + 1 for shape, leaf in leaves):
        return trees
    counts = {len(leaf) for _, leaf in leaves}
    if len(counts) > 1:
        raise CheckpointError(f"{path} has leaves of {', '.join(map(str, sorted(counts)))} replicas: it is damaged.")
    count = counts.pop()
    if replica is None:
        _refuse_different_replicas(known, count, path)
    elif not 0 <= replica < count:
        raise CheckpointError(f"{path} has {count} replicas, 0 to {count - 1}; there is no replica {replica}.")
    alone = {tree: {name: leaf[replica or 0] for name, leaf in known[tree].items()} for tree in trees}
    return {tree: trees[tree] | alone[tree] for tree in trees}


def _refuse_different_replicas(trees: Trees, count: int, path: Path) -> None:
    different = {
        f"{name}/{key}": float(np.nanmax(np.abs(leaf - leaf[:1])))
        for name, tree in trees.items()
        for key, leaf in tree.items()
        if not np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape), equal_nan=True)
    }
    if different:
        worst = max(different, key=lambda name: different[name])
        raise CheckpointError(
            f"The {count} replicas in {path} differ in {len(different)} leaves, by up to {different[worst]:.3g} in "
            f"{worst}: the run's devices trained apart (that system does not average gradients over them). "
            "Choose one: from_jax(path, replica=0), or --replica 0."
        )


# -- writing ---------------------------------------------------------------------------------------------------------


def write_jax(state: TrainingState, path: str | Path) -> None:
    """Write a training state as the JAX system's trainer does; see `to_jax`, which writes only a model.

    Raises:
        ConfigError: the system cannot express the model; the message names the options.
        CheckpointError: the path is a folder, but not an Orbax checkpoint, orbax is not installed, or the run's
            optimizer was not AdamW.
    """
    state.check_resumable()
    path = local_path(path, "The checkpoint's path")
    cfg = jax_config_of(state.config)
    if path.suffix == ".safetensors":
        with replacing(path) as unfinished:
            save_file(_known_leaves(state), unfinished, {"config": json.dumps(cfg), "dialect": dialect_of_cfg(cfg)})
    else:
        _write_orbax(_whole_tree(state, cfg), path)


def _known_leaves(state: TrainingState) -> dict[str, np.ndarray]:
    """Leaves by path, of what the state has."""
    first, second = state.moments or (None, None)
    trees = {
        "params": state.weights,
        "ema_params": state.averaged,
        "opt_state/0/mu": first,
        "opt_state/0/nu": second,
    }
    return {
        f"{prefix}/{name}": leaf
        for prefix, values in trees.items()
        if values is not None
        for name, leaf in to_jax_params(values, state.config).items()
    } | {"step": np.asarray(state.step, dtype=np.int32)}


def _whole_tree(state: TrainingState, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's tree, in which nothing may be missing."""
    zeros = {name: np.zeros_like(value) for name, value in state.weights.items()}
    whole = replace(state, averaged=state.averaged or state.weights, moments=state.moments or Moments(zeros, zeros))
    tree: dict[str, Any] = {}
    for path, leaf in _known_leaves(whole).items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    # The state of optax.adamw: only the first of its three transformations has one.
    adam = tree["opt_state"]["0"] | {"count": tree["step"]}
    return tree | {
        "step": state.step,
        "opt_state": [adam, None, None],
        "rng": np.zeros(2, dtype=np.uint32),
        "cfg": dict(cfg),
    }


def _write_orbax(tree: dict[str, Any], path: Path) -> None:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise CheckpointError(
            "Writing an Orbax checkpoint needs jax and orbax: pip install 'lightning_vfs[jax]'. A flat safetensors "
            "file, which needs neither, is written where the name ends with .safetensors."
        ) from error
    if path.exists() and not (path / ORBAX_TREE).is_file() and (path.is_file() or any(path.iterdir())):
        raise CheckpointError(f"{path} exists already and is not an Orbax checkpoint: name another folder.")
    with replacing(path) as unfinished:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(unfinished.resolve(), tree, force=True)
        if path.exists():
            shutil.rmtree(path)
