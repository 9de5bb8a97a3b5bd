"""lightning-vfs convert: checkpoints of Lightning, of the JAX system, and folders of weights, each to another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import auto_cli

from lightning_vfs.commands.closing import next_command, sampling_command
from lightning_vfs.commands.last_run import spell_out_last
from lightning_vfs.commands.lightning import find_last
from lightning_vfs.commands.trust import import_trusted
from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.core.files import local_path, read_json
from lightning_vfs.interop.jax import read_jax, write_jax
from lightning_vfs.interop.lightning_state import read_lightning, write_lightning
from lightning_vfs.interop.models import model_of
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.training.pretrained import CONFIG, WEIGHTS
from lightning_vfs.training.state import TrainingState, arrays

SUFFIXES = {"pretrained": "", "ckpt": ".ckpt", "orbax": "", "safetensors": ".safetensors"}


def convert(
    out: str | None = None,
    ckpt_path: str | None = None,
    from_jax: str | None = None,
    pretrained: str | None = None,
    to: Literal["pretrained", "ckpt", "orbax", "safetensors"] = "pretrained",
    raw: bool = False,
    cfg: str | None = None,
    replica: int | None = None,
    trust: str | None = None,
) -> None:
    """Turn a checkpoint into another: give one of `ckpt_path`, `from_jax` and `pretrained`.

    Args:
        out: the file or folder to write; by default the source's name with the format's suffix, in the current folder.
        ckpt_path: a Lightning checkpoint.
        from_jax: a checkpoint of the JAX system: an Orbax folder, a flat safetensors or a Flax msgpack file.
        pretrained: a folder with model.safetensors and config.json, or a hub id.
        to: `pretrained` (a folder with model.safetensors and config.json, for sampling), `ckpt` (a Lightning
            checkpoint, for `fit --ckpt_path`: raw and averaged weights, AdamW's moments and the step), `orbax` or
            `safetensors` (for the JAX system).
        raw: `pretrained` takes the raw weights instead of the averaged ones.
        cfg: JSON file with the JAX system's flat configuration, for a checkpoint without one.
        replica: which replica to take of a JAX run whose devices hold different weights.
        trust: import path of a custom encoder or denoiser that the checkpoint names, if you trust it.
    """
    import_trusted(trust)
    given = {"--ckpt_path": ckpt_path, "--from_jax": from_jax, "--pretrained": pretrained}
    sources = [(flag, value) for flag, value in given.items() if value is not None]
    if len(sources) != 1:
        got = ", ".join(flag for flag, _ in sources) or "none"
        raise ConfigError(f"Give one of {', '.join(given)} to say what to convert; got {got}.")
    source = local_path(sources[0][1], sources[0][0])
    target = local_path(out, "--out") if out else _default_target(source, to)
    _check_target(target)
    if ckpt_path:
        state = read_lightning(ckpt_path)
    elif from_jax:
        state = read_jax(source, _read_json(cfg) if cfg else None, replica)
    else:
        model = VFSDDPM.from_pretrained(str(pretrained))
        state = TrainingState(model.config, arrays(model.state_dict()))
    _check_finite(state, str(source))
    write: dict[str, Callable[[TrainingState, Path], None]] = {
        "pretrained": lambda state, path: model_of(state, not raw and state.averaged is not None).save_pretrained(path),
        "ckpt": write_lightning,
        "orbax": write_jax,
        "safetensors": write_jax,
    }
    write[to](state, target)
    print(f"{target}: {_description(state, to, raw)}")
    if to == "pretrained":
        print(sampling_command(state.config, "--pretrained", target))
    elif to == "ckpt":
        print(next_command("fit", "--config", "imported", "--data.root", "FOLDER", "--ckpt_path", target))


def _check_finite(state: TrainingState, source: str) -> None:
    """Refuse weights that are not finite numbers.

    Raises:
        CheckpointError: there are such weights; the message names them.
    """
    weights = [("", state.weights), ("averaged ", state.averaged or {})]
    broken = [of + name for of, tensors in weights for name, value in tensors.items() if not np.isfinite(value).all()]
    if broken:
        more = ", ..." if len(broken) > 3 else ""
        raise CheckpointError(
            f"The weights {', '.join(broken[:3])}{more} in {source} are not finite: the run has diverged. Convert an "
            "earlier checkpoint."
        )


def _read_json(path: str) -> dict[str, Any]:
    try:
        values = read_json(local_path(path, "--cfg"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--cfg {path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--cfg {path} holds a {type(values).__name__}, not a mapping of names to values.")
    return values


def _default_target(source: Path, to: str) -> Path:
    """A name in the current folder for what is written."""
    return Path(source.name.removesuffix(source.suffix) + SUFFIXES[to])


def _check_target(target: Path) -> None:
    """Raise ConfigError if a file would be overwritten; an Orbax folder may be replaced by another."""
    there = [target / WEIGHTS, target / CONFIG] if target.is_dir() else [target]
    if found := next((path for path in there if os.path.lexists(path)), None):
        raise ConfigError(f"{found} exists already: say with --out where to write, or remove it.")


def _description(state: TrainingState, to: str, raw: bool) -> str:
    if to == "pretrained":
        averaged = state.averaged is not None and not raw
        return f"model.safetensors and config.json, {'averaged' if averaged else 'raw'} weights of step {state.step}"
    parts = ["weights"]
    if state.averaged is not None:
        parts.append("their average")
    if state.moments is not None:
        parts.append("AdamW's moments")
    return f"{', '.join(parts)}, step {state.step}, sets of {state.config.sets.set_size}"


def run(args: list[str]) -> None:
    """Parse the arguments and convert."""
    auto_cli(
        convert,
        args=spell_out_last(args, find_last),
        prog="lightning-vfs convert",
        as_positional=False,
        parser_class=ExplainingParser,
    )
