"""Models as folders: `model.safetensors` and `config.json`; their names, and where these lead."""

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
from lightning_vfs.training.hub import download

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"

BOXED = Path(__file__).parents[1] / "pretrained"
"""Folder of the models that come with the package."""

BOXED_NAMES = ("glyphs",)
"""Models that come with the package."""


def save_pretrained(
    config: VFSConfig, state_dict: Mapping[str, Tensor], folder: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write weights and configuration, each under a temporary name first.

    Args:
        config: of the model.
        state_dict: its weights.
        folder: made if necessary.
        dtype: of the floating-point weights in the file; by default their own.

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
        stored = {name: tensor.detach().cpu() for name, tensor in state_dict.items()}
        stored = {name: t.to(dtype or t.dtype) if t.is_floating_point() else t for name, t in stored.items()}
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, weights)
        description.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load_pretrained(
    name: str | Path, framework: Literal["pt", "np"] = "pt", revision: str | None = None, **options: Any
) -> tuple[VFSConfig, dict[str, Any]]:
    """Configuration and weights of a model, as torch tensors or, without torch, NumPy arrays.

    Args:
        name: as for `pretrained_folder`; so are `revision` and `options`.
        framework: of the weights.

    Raises:
        ConfigError: a revision of a model that is not on the hub.
        CheckpointError: a file is missing, damaged, or of something else; the message says which, and what to do.
        UntrustedCodeError: the configuration names a class of another package that is not imported yet.
    """
    folder = pretrained_folder(name, revision, **options)
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


def pretrained_folder(name: str | Path, revision: str | None = None, **options: Any) -> Path:
    """The folder that a model's name leads to.

    Args:
        name: a folder with model.safetensors and config.json; the name of a model that comes with the package
            (`BOXED_NAMES`); or an id of the Hugging Face hub, `user/model` or `user/model@revision`.
        revision: branch, tag or commit, for an id of the hub.
        **options: for an id of the hub, as for `huggingface_hub.snapshot_download`.

    Raises:
        ConfigError: a revision of a model that is not on the hub.
        CheckpointError: the name looks like a path to nothing, or the model cannot be downloaded.
    """
    folder = local_path(name, "The pretrained folder")
    text = str(name)
    if folder.is_dir() and ((folder / CONFIG).is_file() or (folder / WEIGHTS).is_file() or text not in BOXED_NAMES):
        _refuse_revision(f"{folder} is a folder of this machine", revision)
        return folder
    if text in BOXED_NAMES:
        _refuse_revision(f"{text} comes with the package", revision)
        if not (BOXED / text).is_dir():
            raise CheckpointError(
                f"This installation of lightning_vfs lacks the weights of the model {text!r} that releases come with: "
                "install a release, or give a folder or a hub id."
            )
        return BOXED / text
    if text.count("/") > 1 or text.startswith((".", "~", "/")) or (Path(text).parent.is_dir() and "/" in text):
        raise CheckpointError(
            f"There is no folder {text}: give the folder that `save_pretrained` or `lightning-vfs convert` wrote, or a "
            "hub id such as user/model."
        )
    repo_id, _, after = text.partition("@")
    if revision and after and revision != after:
        raise ConfigError(f"{text} names the revision {after}, and revision is {revision}: give one of them.")
    try:
        return download(repo_id, (WEIGHTS, CONFIG), revision or after or None, **options)
    except ConfigError as error:
        raise CheckpointError(f"There is no folder {text}. {error}") from None


def _refuse_revision(why: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(f"revision is {revision!r}, but {why} and has no revisions: leave it out.")
