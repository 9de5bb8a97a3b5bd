"""The model family's combinations: every pair of choices in some row, at tiny sizes."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.modules import OptimizerConfig

BASELINES = ("class_label", "none")

CHOICES: dict[str, list[str]] = {
    "encoder": ["stack", "per_image_mean", "per_slot_mean", "vit", "unet", *BASELINES],
    "objective": ["mse", "hybrid", "min_snr", "kl", "rescaled_kl"],
    "conditioning": ["film", "concat", "lag", "lag_pooled"],
    "pool": ["vector", "tokens"],
    "context": ["deterministic", "variational", "variational_discrete"],
    "held_out": ["zero_slot", "drop", "none"],
    "prediction": ["eps", "x_0", "v"],
    "sampler": ["ddpm", "ddim", "dpmpp_2m"],
    "latent": ["pixels", "images", "latents"],
    "denoiser": ["dit", "unet"],
    "timesteps": ["uniform", "loss_second_moment"],
    "guidance": ["off", "on"],
    "shots": ["fixed", "random"],
    "time": ["none", "timestep"],
}

POOLS = {
    "vit": {"vector": "mean", "tokens": "mean_patch"},
    "unet": {"vector": "mean", "tokens": "none"},
    "set_tokens": {"vector": "mean", "tokens": "patches"},
}

# Apart from the pairs, of which one encoder more would make seven rows more.
SET_TOKENS = (
    {
        "encoder": "set_tokens", "objective": "hybrid", "conditioning": "lag", "pool": "tokens",
        "context": "variational", "held_out": "zero_slot", "prediction": "x_0", "sampler": "dpmpp_2m",
        "latent": "pixels", "denoiser": "dit", "timesteps": "uniform", "guidance": "on", "shots": "random",
        "time": "timestep",
    },
    {
        "encoder": "set_tokens", "objective": "min_snr", "conditioning": "film", "pool": "vector",
        "context": "deterministic", "held_out": "none", "prediction": "v", "sampler": "ddim",
        "latent": "latents", "denoiser": "unet", "timesteps": "loss_second_moment", "guidance": "on", "shots": "random",
        "time": "none",
    },
    {
        "encoder": "set_tokens", "objective": "mse", "conditioning": "lag_pooled", "pool": "tokens",
        "context": "variational_discrete", "held_out": "none", "prediction": "eps", "sampler": "ddim",
        "latent": "images", "denoiser": "unet", "timesteps": "uniform", "guidance": "off", "shots": "fixed",
        "time": "none",
    },
)  # fmt: skip


def makes_sense(row: dict[str, str]) -> bool:
    """Whether a (partial) combination is one that is not to be refused."""
    lag = row.get("conditioning", "film").startswith("lag")
    if row["encoder"] in BASELINES:
        conditional = row["encoder"] == "class_label"
        return not (
            lag
            or row.get("context", "deterministic") != "deterministic"
            or row.get("time", "none") != "none"
            or (row.get("guidance") == "on" and not conditional)
        )
    return not (lag and row.get("pool") == "vector")


class Case(NamedTuple):
    """One combination, by the names in CHOICES."""

    row: dict[str, str]

    def __str__(self) -> str:
        return "-".join(self.row.values())

    @property
    def guidance_scale(self) -> float:
        """Of its sampling."""
        return 2.0 if self.row["guidance"] == "on" else 1.0

    def config(self, autoencoder: Path) -> VFSConfig:
        """Its configuration: 8 x 8 images of 3 channels, sets of 4, 20 timesteps."""
        row, latent = self.row, self.row["latent"] != "pixels"
        architecture = row["encoder"] if row["encoder"] in (*POOLS, *BASELINES) else "set_vit"
        size, kl = 4 if latent else 8, "kl" in row["objective"]
        values: dict[str, dict[str, Any]] = {
            "sets": {
                "set_size": 4, "image_size": 8, "held_out": row["held_out"], "random_shots": row["shots"] == "random",
            },
            "encoder": {
                "architecture": architecture, "dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "patch_size": 2,
                "tokenizer": row["encoder"] if row["encoder"].startswith("per") else "stack",
                "pool": POOLS.get(architecture, {"vector": "cls", "tokens": "patches"})[row["pool"]],
                "context": row["context"], "kl_weight": 0.01, "codebook_size": 4, "codebook_groups": 2,
                "context_dropout": 0.25 if row["guidance"] == "on" else 0.0, "time_token": row["time"],
                "num_classes": 3 if architecture == "class_label" else 0,
                "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1,
            },
            "denoiser": {
                "architecture": row["denoiser"], "dim": 16, "depth": 2, "heads": 2, "patch_size": 2,
                "conditioning": "lag" if row["conditioning"].startswith("lag") else "film",
                "film": "concat" if row["conditioning"] == "concat" else "add",
                "context_tokens": 2 if row["conditioning"] == "lag_pooled" else 0,
                "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [size // 2],
            },
            "diffusion": {
                "timesteps": 20, "prediction": row["prediction"], "clip_denoised": not latent,
                "variance": "learned_range" if row["objective"] in ("hybrid", "rescaled_kl") else "fixed_large",
                "loss": row["objective"] if kl else "mse" if row["objective"] == "mse" else "rescaled_mse",
                "min_snr_gamma": 5.0 if row["objective"] == "min_snr" else 0.0, "timestep_sampling": row["timesteps"],
            },
        }  # fmt: skip
        if row["conditioning"] == "lag_pooled" and row["denoiser"] == "dit":
            values["denoiser"]["cross_attention_layers"] = [1]
        if latent:
            values["latent"] = {
                "autoencoder": str(autoencoder), "downsampling": 2, "scale": 0.5, "encoder_input": row["latent"],
            }  # fmt: skip
        return VFSConfig.from_dict(values)

    def model(self, autoencoder: Path) -> VFSDDPM:
        """A model whose gates and output layers are not zero, as a fresh one's are."""
        torch.manual_seed(0)
        optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=0, weight_decay=0.0)
        model = VFSDDPM(self.config(autoencoder), optimizer)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model

    @property
    def batch(self) -> dict[str, torch.Tensor]:
        """4 sets of 4 images, of two colours each."""
        generator = torch.Generator().manual_seed(0)
        colours = torch.rand(4, 1, 3, 1, 1, generator=generator) * 2 - 1
        images = (colours + 0.2 * torch.randn(4, 4, 3, 8, 8, generator=generator)).clamp(-1, 1)
        return {"images": images, "index": torch.arange(4), "label": torch.tensor([0, 1, 2, 0])}

    def condition(self) -> dict[str, torch.Tensor]:
        """What two images are generated from."""
        if self.row["encoder"] == "none":
            return {"support": None}  # type: ignore[dict-item]
        if self.row["encoder"] == "class_label":
            return {"support": None, "label": torch.tensor([0, 2])}  # type: ignore[dict-item]
        return {"support": self.batch["images"][:2, :2]}


Pair = frozenset[tuple[str, str]]


@functools.cache
def cases() -> tuple[Case, ...]:
    """Rows in which every pair of choices that makes sense is found, by greedy search, and those of SET_TOKENS."""
    rng = random.Random(0)
    left = {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(CHOICES, 2)
        for x, y in itertools.product(CHOICES[a], CHOICES[b])
        if _can_be_completed({a: x, b: y})
    }
    rows = []
    while left:
        # Of some rows around the first pair that is left, the one with the most pairs that are.
        first = min(left, key=sorted)
        drawn = (_complete(dict(first), left, rng) for _ in range(10))
        best = max(drawn, key=lambda row: len(left & _pairs(row)))
        left -= _pairs(best)
        rows.append(Case(best))
    return (*rows, *map(Case, SET_TOKENS))


def every_choice() -> list[Case]:
    """A few of the rows, in which every choice is found: for what goes wrong in one part, whatever the others are."""
    left, rows = {item for case in cases() for item in case.row.items()}, []
    while left:
        best = max(cases(), key=lambda case: len(left & case.row.items()))
        left -= best.row.items()
        rows.append(best)
    return rows


def with_others(others: Sequence[Any]) -> list[Any]:
    """For `parametrize`: every row with one of the others, so that each meets every choice; the rest is marked slow."""
    product, left, fast = list(itertools.product(cases(), others)), set(), []
    for case, other in product:
        left |= {(item, other) for item in case.row.items()}
    for case in cases():
        other = max(others, key=lambda other: len(left & {(item, other) for item in case.row.items()}))
        left -= {(item, other) for item in case.row.items()}
        fast.append((case, other))
    assert not left
    return [pytest.param(*pair, marks=() if pair in fast else pytest.mark.slow) for pair in product]


def _can_be_completed(row: dict[str, str]) -> bool:
    """Whether some encoder makes sense of a partial combination; the rules of `makes_sense` all ask for it."""
    encoders = [row["encoder"]] if "encoder" in row else CHOICES["encoder"]
    return any(makes_sense({**row, "encoder": encoder}) for encoder in encoders)


def _complete(row: dict[str, str], left: set[Pair], rng: random.Random) -> dict[str, str]:
    """The rest of a row, choice by choice in random order: what makes sense and brings the most pairs that are left."""
    for name in rng.sample(list(CHOICES), len(CHOICES)):
        if name not in row:
            options = [value for value in CHOICES[name] if _can_be_completed({**row, name: value})]
            rng.shuffle(options)
            row[name] = max(options, key=lambda value: len(left & _pairs({**row, name: value})))
    return {name: row[name] for name in CHOICES}


def _pairs(row: dict[str, str]) -> set[Pair]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
