"""Folders with `model.safetensors` and `config.json`, read without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightning_vfs.core import contract
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import CheckpointError
from lightning_vfs.interop.jax_parameters import parameter_table, to_jax_params
from lightning_vfs.training import pretrained


def load_pretrained(name: str | Path) -> tuple[VFSConfig, dict[str, np.ndarray]]:
    """Configuration and the JAX system's leaves, by path, of a local folder or a hub id; the weights say the set size.

    Raises:
        CheckpointError: a file is missing, damaged, or of something else; the message says which and what to do.
    """
    config, state_dict = pretrained.load_pretrained(name, "np")
    config = contract.config_for_weights(state_dict, config)
    return config, _leaves(state_dict, config, name)


def _leaves(state_dict: dict[str, np.ndarray], config: VFSConfig, source: str | Path) -> dict[str, np.ndarray]:
    ours = [parameter.name for parameter in parameter_table(config)]
    wrong = [f"missing: {name}" for name in ours if name not in state_dict]
    wrong += [f"extra: {name}" for name in sorted(set(state_dict) - set(ours))]
    if wrong:
        raise CheckpointError(f"The weights in {source} do not fit its configuration:\n  " + "\n  ".join(wrong))
    try:
        return to_jax_params({name: value.astype(np.float32) for name, value in state_dict.items()}, config)
    except ValueError as error:  # einops cannot take apart what has another number of axes
        raise CheckpointError(f"The weights in {source} do not fit its configuration: {error}") from error
