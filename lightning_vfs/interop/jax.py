"""Models of the JAX system, read without jax."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.contract import agree
from lightning_vfs.core.errors import CheckpointError
from lightning_vfs.interop.jax_parameters import state_dict_from_jax
from lightning_vfs.modules import VFSDDPM

SPT_SCALE = "encoder/params/to_patch_embedding/norm/scale"


def from_jax(path: str | Path) -> VFSDDPM:
    """Model of a flat safetensors file of the JAX system, in eval mode.

    The file holds leaves as `params/<path>` and the system's `cfg` as JSON under `config` in its metadata. The weights'
    set size wins over a stale `sample_size`, with a warning.

    Raises:
        CheckpointError: the file is no such file, its configuration has an option that is not known here, or leaves
            are missing, extra or misshaped; all of them are listed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; from_jax reads a flat safetensors file of the JAX system.")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if name.startswith("params/")]  # noqa: SIM118 - not a mapping
            params = {name.removeprefix("params/"): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    if "config" not in metadata or SPT_SCALE not in params:
        raise CheckpointError(
            f"{path} is no flat file of the JAX system: it needs `config` in its metadata and leaves `params/<path>`."
        )
    config = VFSConfig.from_jax(json.loads(metadata["config"]))
    config = agree(config, weights=params[SPT_SCALE].shape[0])
    state_dict, wrong = state_dict_from_jax(params, config)
    model = VFSDDPM(config)
    if not wrong:
        expected = model.state_dict()
        wrong = [
            f"misshaped: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            for name, tensor in state_dict.items()
            if tensor.shape != expected[name].shape
        ]
    if wrong:
        raise CheckpointError(f"{path} does not fit its own configuration:\n  " + "\n  ".join(wrong))
    model.load_state_dict(state_dict)
    return model.eval()
