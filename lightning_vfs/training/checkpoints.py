"""Lightning checkpoints of a VFSDDPM: written whole, and checked when they are read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.contract import DENOISER_PREFIX, PATCH_DIM_KEY
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.core.files import local_path, replacing
from lightning_vfs.core.trust import check_architectures, check_plain, reading
from lightning_vfs.training.torch_files import load_torch_file


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint on the CPU, its tensors memory-mapped; only plain values and tensors are unpickled.

    Raises:
        CheckpointError: the file is missing, damaged, not a Lightning checkpoint, or one of another model.
        UntrustedCodeError: its configuration names a class of another package that is not imported yet.
    """
    path = local_path(path, "The checkpoint's path")
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        hint = f"; there are {', '.join(others)} in that folder" if others else ""
        raise CheckpointError(f"There is no checkpoint {path}{hint}. Give --ckpt_path a file that a run wrote.")
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} is a safetensors file, not a Lightning checkpoint: give its folder to --pretrained or "
            "`VFSDDPM.from_pretrained`."
        )
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or not a checkpoint: a checkpoint is a zip file as "
            "torch.save writes it. Use an earlier one, or copy it again."
        )
    try:
        checkpoint = load_torch_file(path)
    except Exception as error:  # of nearly any kind, on damaged files
        raise CheckpointError(f"{path} is not a checkpoint that can be read safely: {error}") from error
    check_contents(checkpoint, str(path))
    return checkpoint


def check_contents(checkpoint: Any, name: str) -> None:
    """Refuse what is not a Lightning checkpoint of a VFSDDPM; `name` is what the message calls it.

    Raises:
        CheckpointError: there are no weights, those of another model, or no hyper-parameters.
        UntrustedCodeError: the hyper-parameters name code that is not imported yet.
    """
    state_dict = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state_dict, dict):
        raise CheckpointError(
            f"{name} is not a Lightning checkpoint: it has no `state_dict`. A bare state_dict has no configuration; "
            "build VFSDDPM(config), call load_state_dict, and save_pretrained."
        )
    for key in ("state_dict", "current_model_state"):
        values = checkpoint.get(key, {})
        if not isinstance(values, dict) or not all(
            isinstance(k, str) and isinstance(value, torch.Tensor) for k, value in values.items()
        ):
            raise CheckpointError(f"{name} is damaged: its `{key}` holds something else than named tensors.")
    if PATCH_DIM_KEY not in state_dict and not any(name.startswith(DENOISER_PREFIX) for name in state_dict):
        few = ", ".join(list(state_dict)[:3]) or "nothing"
        raise CheckpointError(f"{name} is a checkpoint of another model (it has {few}, ...), not of a VFSDDPM.")
    hyper_parameters = checkpoint.get("hyper_parameters")
    if not isinstance(hyper_parameters, dict) or "config" not in hyper_parameters:
        raise CheckpointError(
            f"{name} has no hyper-parameters of a VFSDDPM, so its configuration is unknown. Use a checkpoint as "
            "trainer.save_checkpoint writes it; or build VFSDDPM(config), call load_state_dict, and save_pretrained."
        )
    # Lightning would call what they name, and takes hyper-parameters from their old places as well.
    places = {"_instantiator": hyper_parameters, "_class_path": hyper_parameters}
    for key, values in (places | {"hparams": checkpoint, "module_arguments": checkpoint}).items():
        if key in values:
            raise CheckpointError(f"{name} says by {key} how to build its model, which no VFSDDPM does.")
    check_architectures(name, hyper_parameters["config"])
    with reading(name):
        check_plain(hyper_parameters, most=100_000)
        try:
            VFSConfig.from_dict(hyper_parameters["config"])
        except ConfigError as error:
            raise CheckpointError(f"{name} has a configuration that cannot work: {error}") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and checks them when it reads.

    A run that is killed while it writes leaves the previous checkpoint. Lightning itself writes through the system's
    folder for temporary files; if that is another file system, the last step is a copy, which a kill can cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write under a temporary name in the same folder, then rename.

        Raises:
            CheckpointError: it cannot be written; an earlier one of the same name is left as it was.
        """
        path = local_path(path, "The checkpoint's path")
        try:
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                torch.save(checkpoint, file)
        except BaseException as error:
            if path.is_file() and not path.stat().st_size:
                path.unlink()  # it kept the name free
            if not isinstance(error, OSError | RuntimeError):
                raise
            # torch.save turns some errors of the file system into the latter.
            cause = error if isinstance(error, OSError) else error.__context__ or error
            raise CheckpointError(
                f"The checkpoint {path} cannot be written: {cause}. What was saved before is left as it was: make room "
                "or choose another folder, and resume with --ckpt_path last."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """A checkpoint of a VFSDDPM on the CPU; see `read_checkpoint` for what is raised."""
        return read_checkpoint(path)
