"""Models as folders: `model.safetensors` and `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import safe_open

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.core.files import local_path, read_json, replacing
from lightning_vfs.core.trust import check_architectures

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_pretrained(config: VFSConfig, state_dict: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write weights and configuration, each under a temporary name first.

    Raises:
        ConfigError: the folder has the config.json of something else.
    """
    from safetensors.torch import save_file

    folder = local_path(folder, "The pretrained folder")
    if (folder / CONFIG).exists():
        try:
            VFSConfig.from_dict(read_json(folder / CONFIG))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{folder / CONFIG} is there already, and is not a lightning_vfs configuration ({error}): name another "
                "folder, so that it is not overwritten."
            ) from error
    with replacing(folder / CONFIG) as description, replacing(folder / WEIGHTS) as weights:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}, weights)
        description.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load_pretrained(name: str | Path, framework: Literal["pt", "np"] = "pt") -> tuple[VFSConfig, dict[str, Any]]:
    """Configuration and weights of a local folder or a hub id, as torch tensors or, without torch, NumPy arrays.

    Raises:
        CheckpointError: a file is missing, damaged, or of something else; the message says which, and what to do.
        UntrustedCodeError: the configuration names a class of another package that is not imported yet.
    """
    folder = local_path(name, "The pretrained folder")
    if not folder.is_dir():
        folder = _download(str(name))
    for file in (WEIGHTS, CONFIG):
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder} has no {file}: a folder written by `save_pretrained` or `lightning-vfs convert` has both "
                f"{WEIGHTS} and {CONFIG}. For a Lightning checkpoint use `load_from_checkpoint` or --ckpt_path."
            )
    try:
        values = read_json(folder / CONFIG)
        check_architectures(folder / CONFIG, values)
        config = VFSConfig.from_dict(values)
    except CheckpointError:
        raise
    except Exception as error:  # of nearly any kind, on values of other types
        raise CheckpointError(f"{folder / CONFIG} is not a lightning_vfs configuration: {error}") from error
    try:
        with safe_open(folder / WEIGHTS, framework) as file:
            return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged or not a safetensors file: {error}") from error


def _download(name: str) -> Path:
    """Folder of a hub id in the local cache, downloaded if necessary.

    Raises:
        CheckpointError: the name looks like a path, or nothing can be downloaded.
    """
    if name.count("/") > 1 or name.startswith((".", "~", "/")) or (Path(name).parent.is_dir() and "/" in name):
        raise CheckpointError(
            f"There is no folder {name}: give the folder that `save_pretrained` or `lightning-vfs convert` wrote, or a "
            "hub id such as user/model."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"There is no folder {name}. To load a hub id, first `pip install 'lightning_vfs[hub]'`."
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG]))
    except Exception as error:  # the hub's client raises many kinds: bad id, no such repository, no network
        raise CheckpointError(f"There is no folder {name}, and the hub has nothing under that id: {error}") from error
