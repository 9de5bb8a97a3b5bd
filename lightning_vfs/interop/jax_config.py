"""Configurations of the JAX system: its flat `cfg` becomes a VFSConfig, and a VFSConfig its `cfg`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightning_vfs.core.config import DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig, VFSConfig
from lightning_vfs.core.contract import TRAINING_ONLY
from lightning_vfs.core.errors import CheckpointError, ConfigError

Dialect = Literal["seed", "head"]
"""First and last state of that system: `seed` drops the held-out image, `head` puts a zero image in the last slot."""

# The first state of the system had these in its code, not in its configuration.
SEED_ENCODER = {"encoder_depth": 3, "encoder_heads": 8, "encoder_dim_head": 56, "encoder_mlp_ratio": 1.0}

# Options of which only one value can be read, with the reason.
UNSUPPORTED = {
    "encoder_mode": ("vit_set", "The encoder of single images has other layers."),
    "mode_conditioning": ("film", "Its cross-attention never worked in that system: there are no weights to keep."),
    "class_cond": (False, "Its class-conditional denoiser has other layers."),
    "use_vae": (False, "Its latents come from an autoencoder that the checkpoint does not hold."),
}

# Parts of the model that an export must find in this state, since the system has no other that works.
EXPRESSIBLE = {
    "encoder.architecture": ("set_vit",),
    "encoder.context": ("deterministic", "variational"),
    "encoder.context_dropout": (0.0,),
    "denoiser.architecture": ("dit",),
    "denoiser.conditioning": ("film",),
    "diffusion.schedule": ("linear", "cosine"),
    "latent.autoencoder": ("",),
}

# Width of the images that the system's denoiser pads to 32.
PADDED_SIZE, PADDING = 28, 2

POOLS = {"none": "patches"}
"""Poolings of the last state that have another name here: its `none` leaves out class and time token."""


def dialect_of_cfg(cfg: Mapping[str, Any]) -> Dialect:
    """`head` if a flat `cfg` states the encoder's sizes, `seed` if it does not."""
    return "head" if "encoder_depth" in cfg else "seed"


def config_from_jax(cfg: Mapping[str, Any]) -> VFSConfig:
    """The VFSConfig of a flat `cfg`.

    Args:
        cfg: the system's configuration, of its first state (`seed`: the image is dropped from its set, and
            `sample_size` counts the stacked images) or its last (`head`: a zero slot). Its `timestep_respacing` and
            what concerns cross-attention had no effect on a film model there, and has none here.

    Raises:
        CheckpointError: an option that this package does not have; the message names it.
    """
    for option, (supported, reason) in UNSUPPORTED.items():
        if cfg.get(option, supported) != supported:
            raise CheckpointError(
                f"The JAX checkpoint has {option} = {cfg[option]!r}; only {supported!r} can be read. {reason}"
            )
    if cfg.get("mode_context", "deterministic") not in EXPRESSIBLE["encoder.context"]:
        raise CheckpointError(
            f"The JAX checkpoint has mode_context = {cfg['mode_context']!r}; only 'deterministic' and "
            "'variational' can be read."
        )
    try:
        return _config(cfg)
    except KeyError as error:
        raise CheckpointError(f"The JAX checkpoint's cfg has no {error}: it is of another system.") from error
    except ConfigError as error:
        raise CheckpointError(f"The JAX checkpoint's cfg cannot be expressed here: {error}") from error


def _config(cfg: Mapping[str, Any]) -> VFSConfig:
    head = dialect_of_cfg(cfg) == "head"
    encoder = cfg if head else {**cfg, **SEED_ENCODER}
    held_out = "none" if cfg.get("input_dependent") else "zero_slot" if head else "drop"
    slots, dropout = cfg["sample_size"], cfg.get("dropout", 0.0)
    projection = cfg.get("use_projection_head", False)
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
            tokenizer="stack" if cfg.get("encoder_tokenize_mode", "stack") == "stack" else "per_slot_mean",
            pool=POOLS.get(cfg["pool"], cfg["pool"]) if head else cfg["pool"],
            time_token="timestep" if head else "zero",
            dropout=dropout,
            head_hidden_dim=cfg["encoder_mlp_head_hidden_dim"] if cfg.get("encoder_use_mlp_head") else 0,
            projection_dim=cfg["context_channels"] if projection else 0,
            projection_hidden_dim=cfg["projection_hidden_dim"] if projection else 0,
            context=cfg["mode_context"],
        ),
        DenoiserConfig(
            dim=cfg["hidden_size"],
            depth=cfg["depth"],
            heads=cfg["num_heads"],
            mlp_ratio=cfg["mlp_ratio"],
            patch_size=cfg.get("dit_patch_size") or cfg["patch_size"],
            film="concat" if head else "add",
            normalize_condition=head and cfg.get("use_context_layernorm", True),
            dropout=dropout,
            pad=PADDING if cfg["image_size"] == PADDED_SIZE else 0,
        ),
        DiffusionConfig(
            timesteps=cfg["diffusion_steps"],
            schedule=cfg["noise_schedule"],
            prediction="x_0" if cfg["predict_xstart"] else "eps",
            variance="learned_range" if cfg["learn_sigma"] else "fixed_large",
            rescale_timesteps=cfg.get("rescale_timesteps", False),
            loss="rescaled_kl" if cfg.get("use_kl") else "rescaled_mse" if cfg.get("rescale_learned_sigmas") else "mse",
        ),
    )


def jax_config_of(config: VFSConfig) -> dict[str, Any]:
    """The flat `cfg` that the JAX system's last state builds this model from; of its first, where only that one can.

    Raises:
        ConfigError: the system cannot express the model; the message names the options and what it can.
    """
    _refuse_other_networks(config)
    sets, encoder, denoiser, diffusion = config.sets, config.encoder, config.denoiser, config.diffusion
    seed = encoder.time_token == "zero"
    cfg: dict[str, Any] = {
        "image_size": sets.image_size,
        "in_channels": sets.channels,
        "sample_size": sets.slots,
        "encoder_mode": "vit_set",
        "hdim": encoder.dim,
        "pool": {ours: theirs for theirs, ours in POOLS.items()}.get(encoder.pool, encoder.pool),
        "hidden_size": denoiser.dim,
        "depth": denoiser.depth,
        "num_heads": denoiser.heads,
        "mlp_ratio": float(denoiser.mlp_ratio),
        "patch_size": denoiser.patch_size,
        "context_channels": encoder.output_dim,
        "mode_conditioning": denoiser.conditioning,
        "class_cond": False,
        "diffusion_steps": diffusion.timesteps,
        "noise_schedule": diffusion.schedule,
        "learn_sigma": diffusion.variance == "learned_range",
        "timestep_respacing": "",
        "use_kl": diffusion.loss == "rescaled_kl",
        "predict_xstart": diffusion.prediction == "x_0",
        "rescale_timesteps": diffusion.rescale_timesteps,
        "rescale_learned_sigmas": diffusion.loss == "rescaled_mse",
        "mode_context": encoder.context,
    }
    if not seed:
        cfg |= {
            "use_vae": False,
            "encoder_patch_size": encoder.patch_size,
            "dit_patch_size": denoiser.patch_size,
            "dropout": float(encoder.dropout),
            "encoder_depth": encoder.depth,
            "encoder_heads": encoder.heads,
            "encoder_dim_head": encoder.dim_head,
            "encoder_mlp_ratio": float(encoder.mlp_ratio),
            "encoder_tokenize_mode": "stack" if encoder.tokenizer == "stack" else "per_sample_mean",
            "encoder_use_mlp_head": bool(encoder.head_hidden_dim),
            "encoder_mlp_head_hidden_dim": encoder.head_hidden_dim or 512,
            "use_projection_head": bool(encoder.projection_dim),
            "projection_hidden_dim": encoder.projection_hidden_dim,
            "input_dependent": sets.held_out == "none",
            "use_context_layernorm": denoiser.normalize_condition,
        }
    _refuse_what_was_lost(config, cfg, "seed" if seed else "head")
    return cfg


# What does not change a model's outputs, so that an export may lose it.
_MAY_DIFFER = {*TRAINING_ONLY, "encoder.kl_weight", "diffusion.clip_denoised"}


def _refuse_other_networks(config: VFSConfig) -> None:
    """Name what the system has no network for."""
    values = config.to_dict()
    lost = []
    for option, allowed in EXPRESSIBLE.items():
        part, name = option.split(".")
        if values[part][name] not in allowed:
            lost.append(f"{option} is {values[part][name]!r}, there it can only be {' or '.join(map(repr, allowed))}")
    if lost:
        raise ConfigError(_cannot_express("", lost))


def _cannot_express(state: str, lost: list[str]) -> str:
    return (
        f"The JAX system{state} cannot express this model: {'; '.join(lost)}. Sample it in JAX with "
        "FlaxVFSDDPM.from_torch(model), which refuses by name what it cannot run, or train one with those options."
    )


def _refuse_what_was_lost(config: VFSConfig, cfg: Mapping[str, Any], dialect: Dialect) -> None:
    """Read the `cfg` back, and name every option that comes back as another."""
    again = config_from_jax(cfg).to_dict()
    lost = [
        f"{part}.{name} is {value!r}, there it can only be {again[part][name]!r}"
        for part, values in config.to_dict().items()
        for name, value in values.items()
        if again[part][name] != value and f"{part}.{name}" not in _MAY_DIFFER
    ]
    if lost:
        raise ConfigError(_cannot_express(f" (its state `{dialect}`)", lost))
