"""Configurations of the JAX system: its flat `cfg` becomes a VFSConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_vfs.core.config import DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig, VFSConfig
from lightning_vfs.core.errors import CheckpointError, ConfigError

# The first state of the system had these in its code, not in its configuration.
SEED_ENCODER = {"encoder_depth": 3, "encoder_heads": 8, "encoder_dim_head": 56, "encoder_mlp_ratio": 1.0}

# Options with a value that this package does not express; any other value than the one given is refused.
UNSUPPORTED = {
    "encoder_mode": "vit_set",
    "mode_conditioning": "film",
    "class_cond": False,
    "use_vae": False,
    "use_kl": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
    "timestep_respacing": "",
    "encoder_use_mlp_head": False,
    "use_projection_head": False,
    "context_pool_size": 0,
    "encoder_tokenize_mode": "stack",
}


def is_head_dialect(cfg: Mapping[str, Any]) -> bool:
    """Whether a flat `cfg` is of the system's last state, which states the encoder's sizes."""
    return "encoder_depth" in cfg


def config_from_jax(cfg: Mapping[str, Any]) -> VFSConfig:
    """The VFSConfig of a flat `cfg`.

    Args:
        cfg: the system's configuration, of its first state (`seed`: the image is dropped from its set, and
            `sample_size` counts the stacked images) or its last (`head`: a zero slot).

    Raises:
        CheckpointError: an option that this package does not have; the message names it.
    """
    for option, supported in UNSUPPORTED.items():
        if cfg.get(option, supported) != supported:
            raise CheckpointError(
                f"The JAX checkpoint has {option} = {cfg[option]!r}; only {supported!r} can be read. "
                + ("Its cross-attention never worked in that system." if cfg[option] == "lag" else "")
            )
    head = is_head_dialect(cfg)
    encoder = cfg if head else {**cfg, **SEED_ENCODER}
    held_out = "none" if cfg.get("input_dependent") else "zero_slot" if head else "drop"
    slots = cfg["sample_size"]
    try:
        return VFSConfig(
            SetConfig(
                set_size=slots + 1 if held_out == "drop" else slots,
                image_size=cfg["image_size"],
                channels=cfg["in_channels"],
                held_out=held_out,  # type: ignore[arg-type]
            ),
            EncoderConfig(
                dim=cfg["hdim"],
                depth=encoder["encoder_depth"],
                heads=encoder["encoder_heads"],
                dim_head=encoder["encoder_dim_head"],
                mlp_ratio=encoder["encoder_mlp_ratio"],
                patch_size=cfg.get("encoder_patch_size") or cfg["patch_size"],
                pool=cfg["pool"],
                time_token="timestep" if head else "zero",
                dropout=cfg.get("dropout", 0.0),
                context=cfg["mode_context"],
            ),
            DenoiserConfig(
                dim=cfg["hidden_size"],
                depth=cfg["depth"],
                heads=cfg["num_heads"],
                mlp_ratio=cfg["mlp_ratio"],
                patch_size=cfg.get("dit_patch_size") or cfg["patch_size"],
                film="concat" if head else "add",
                normalize_condition=head and cfg["use_context_layernorm"],
            ),
            DiffusionConfig(
                timesteps=cfg["diffusion_steps"],
                schedule=cfg["noise_schedule"],
                prediction="x_0" if cfg["predict_xstart"] else "eps",
                variance="learned_range" if cfg["learn_sigma"] else "fixed_large",
            ),
        )
    except KeyError as error:
        raise CheckpointError(f"The JAX checkpoint's cfg has no {error}: it is of another system.") from error
    except ConfigError as error:
        raise CheckpointError(f"The JAX checkpoint's cfg cannot be expressed here: {error}") from error
