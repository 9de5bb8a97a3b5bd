"""The fingerprint of a run: what decides its result, by which runs that share a folder are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_vfs.core.config import DATA_FIELDS, VFSConfig

BEFORE = {"name": "adamw", "momentum": 0.95}
"""Options of the optimizer that older checkpoints lack, with their defaults."""

Fingerprint = dict[str, Any]
"""Plain values by dotted names, such as `data.images` and `model.config.encoder.dim`."""

KEY = "fingerprint"
"""Where a checkpoint has it."""

VFSDDPM = "lightning_vfs.modules.vfsddpm.VFSDDPM"
"""Class of the models of checkpoints that name none."""


def fingerprint(
    model: Mapping[str, Any],
    config: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    data: Mapping[str, Any],
    seed: Any = None,
) -> Fingerprint:
    """The fingerprint of a run; without a seed, that of what is known.

    Left out is what may change when a run is resumed: how it is computed (precision, devices, batch size, workers,
    compilation), how long it trains, and what it logs, saves and evaluates.

    Args:
        model: its class, and arguments that only this class has.
        config: of the model, plain values.
        optimizer: its options.
        data: what decides the sets that are drawn; it states what the model's configuration takes from the data.
        seed: of the run.
    """
    parts = {
        **{f"data.{name}": value for name, value in data.items()},
        **({} if seed is None else {"seed": seed}),
        **{f"model.{name}": value for name, value in model.items()},
        **{
            f"model.config.{part}.{name}": value
            for part, values in config.items()
            for name, value in values.items()
            if part != "sets" or name not in DATA_FIELDS
        },
        **{f"model.optimizer.{name}": value for name, value in optimizer.items()},
    }
    plain: Fingerprint = json.loads(json.dumps(parts, default=str))
    return plain


def fingerprint_of_checkpoint(checkpoint: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint that a checkpoint states; of an older one, what its hyper-parameters say.

    Options of the model and the optimizer that came later had their defaults.
    """
    config = VFSConfig.from_dict(checkpoint["hyper_parameters"]["config"]).to_dict()
    optimizer = checkpoint["hyper_parameters"].get("optimizer", {})
    data = {field: config["sets"][field] for field in DATA_FIELDS}
    stated = fingerprint({"class": VFSDDPM}, config, optimizer, data) | checkpoint.get(KEY, {})
    return {f"model.optimizer.{name}": value for name, value in BEFORE.items()} | stated


def differences(theirs: Fingerprint, ours: Fingerprint) -> list[str]:
    """What differs, such as `data.images 96 -> 104`, in the order of `ours`; what only one of them states does not."""
    return [
        f"{name} {_short(theirs[name])} -> {_short(value)}"
        for name, value in ours.items()
        if name in theirs and theirs[name] != value
    ]


class RunHashes(NamedTuple):
    """SHA-256 in hexadecimal of a run's fingerprint; None of a run that is not known.

    Attributes:
        run_sha256: equal for a run and for what it is resumed as.
        recipe_sha256: without the seed: equal for runs that repeat a training with other seeds.
    """

    run_sha256: str | None
    recipe_sha256: str | None


def hashes_of(of_run: Fingerprint | None) -> RunHashes:
    """The hashes by which records tell runs apart."""
    if not of_run:
        return RunHashes(None, None)
    recipe = {name: value for name, value in of_run.items() if name != "seed"}
    return RunHashes(
        *(hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest() for each in (of_run, recipe))
    )


def unknown(theirs: Fingerprint, ours: Fingerprint) -> str:
    """Which parts of a run could not be compared, in words; empty if all could."""
    missing = {"data" if name.startswith("data.") else name.rpartition(".")[0] or name for name in ours.keys() - theirs}
    return " and ".join(sorted(missing))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
