"""The contract between weights, configuration and data: which set size applies, and what happens if they differ.

Weights state it by `patch_dim`, the width of SPT's LayerNorm; the configuration and the data state it by name. All
load hooks, the command line, data and callbacks call the functions here; see the table in `docs/contract.md`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import CheckpointError, ClassMismatchError, SetSizeMismatchError

OnMismatch = Literal["error", "adapt"]

SLACK = 1.5
"""Largest absolute value that passes for one in [-1, 1], as resizing may overshoot."""

PATCH_DIM_KEY = "encoder.to_patch_embedding.norm.weight"
"""Name of the parameter whose length is `patch_dim`, in models whose encoder cuts images into patches."""

DENOISER_PREFIX = "denoiser."
"""How the names of the denoiser's parameters begin, which every model has."""


class StaleSetSizeWarning(UserWarning):
    """A configuration states another set size than the weights, which override it."""


def set_size_of_weights(found: int, config: VFSConfig) -> int | None:
    """Set size that weights of this patch_dim were made for; None when they do not depend on it.

    They do not with the tokenizer `per_image_mean` and with the encoder `set_tokens`. Weights of `per_slot_mean` and of
    a `vit` do not reveal it: the configuration stored with them states it.

    Raises:
        CheckpointError: `found` is not a patch_dim of this patch size and number of channels.
    """
    sets, encoder, channels = config.sets, config.encoder, config.encoder_channels
    per_slot = encoder.patch_size**2 * channels
    pixels = f"{encoder.patch_size}\u00b2\u00b7{channels}"
    if not encoder.weights_state_set_size:
        if found != per_slot:
            architecture, tokenizer = encoder.architecture, encoder.tokenizer
            kind = f"tokenizer `{tokenizer}`" if architecture == "set_vit" else f"encoder `{architecture}`"
            raise CheckpointError(
                f"The weights have a patch_dim of {found}, but {kind} with patches of "
                f"{encoder.patch_size} and {channels} channels needs {pixels} = {per_slot}: "
                f"{_which_differs(found, config)}"
            )
        return sets.set_size if encoder.fills_slots else None
    slots, rest = divmod(found, per_slot)
    set_size = slots + (sets.held_out == "drop")
    if rest or set_size < 2:
        raise CheckpointError(
            f"The weights have a patch_dim of {found}, which is not a multiple of {pixels} = {per_slot} "
            f"(patch_size\u00b2\u00b7channels) that makes a set of 2 or more: {_which_differs(found, config)}"
            if rest
            else f"The weights have a patch_dim of {found} = {pixels}\u00b7{slots}, a set of {set_size}; "
            "a set holds at least 2 images: the tokenizer differs (per_image_mean?), or the file is damaged."
        )
    return set_size


def _which_differs(found: int, config: VFSConfig) -> str:
    """Which of patch size and channels, if another one alone would explain the patch_dim."""
    encoder, ours = config.encoder, config.encoder_channels
    stacked = config.sets.slots if encoder.weights_state_set_size else 1
    for channels in (1, 3):
        if channels != ours and found == encoder.patch_size**2 * channels * stacked:
            return f"it fits {channels} channels instead of {ours}."
    for patch in range(1, config.encoder_size + 1):
        if patch != encoder.patch_size and found == patch**2 * ours * stacked:
            return f"it fits patches of {patch} instead of {encoder.patch_size}."
    return "the patch size or the channels differ from those of the weights, or the file is damaged."


def resolve_set_size(
    config: VFSConfig,
    *,
    weights: int | None = None,
    data: int | None = None,
    on_mismatch: OnMismatch = "error",
) -> VFSConfig:
    """Decide which set size applies, by the contract's table.

    Args:
        config: the configuration at hand.
        weights: patch_dim of the current weights or those about to be loaded, if any.
        data: images per set that the data delivers, if known.
        on_mismatch: `error`, or `adapt`: sets are padded with zero images, or subsampled, to fit the weights.

    Returns:
        The configuration with the set size that applies.

    Warns:
        StaleSetSizeWarning: the configuration states another set size than the weights.

    Raises:
        CheckpointError: the weights' patch_dim fits no set size.
        SetSizeMismatchError: weights and data differ and `on_mismatch` is `error`.
    """
    configured = config.sets.set_size
    held: int | None = configured
    if not config.encoder.has_patches:
        held = None
    elif weights is not None:
        held = set_size_of_weights(weights, config)
    if held is None:
        return config if data is None else with_set_size(config, data)
    if data is not None and data != held and on_mismatch == "error":
        raise SetSizeMismatchError(_mismatch(config, held, data))
    if configured != held:
        warnings.warn(
            f"The configuration says sets of {configured}, but the weights were made for sets of {held} "
            f"({_formula(config, held)}): continuing with {held}. "
            f"Set model.config.sets.set_size to {held} to silence this.",
            StaleSetSizeWarning,
            stacklevel=2,
        )
    return with_set_size(config, held)


def config_for_weights(
    state_dict: Mapping[str, Any], config: VFSConfig, data: Sequence[int] = (), on_mismatch: OnMismatch = "error"
) -> VFSConfig:
    """The configuration of a model that takes these weights.

    Args:
        state_dict: the weights.
        config: the configuration at hand.
        data: images per set that the data delivers; several numbers if ranks differ.
        on_mismatch: as in `resolve_set_size`.

    Raises:
        CheckpointError: the weights are those of another model.
        SetSizeMismatchError: weights and data differ, and `on_mismatch` is `error`.
    """
    weights = patch_dim_of(state_dict, config)
    sizes: list[int | None] = [*data] or [None]
    for size in sizes:
        resolved = resolve_set_size(config, weights=weights, data=size, on_mismatch=on_mismatch)
    return resolved


def config_for_checkpoint(
    checkpoint: Mapping[str, Any], config: VFSConfig, data: Sequence[int] = (), on_mismatch: OnMismatch = "error"
) -> VFSConfig:
    """As `config_for_weights`, of a checkpoint, whose own configuration must be that of the same model.

    Raises:
        CheckpointError: the checkpoint holds another model; the message names all that differs.
        SetSizeMismatchError: weights and data differ, and `on_mismatch` is `error`.
    """
    check_same_model(VFSConfig.from_dict(checkpoint["hyper_parameters"]["config"]), config)
    return config_for_weights(checkpoint["state_dict"], config, data, on_mismatch)


TRAINING_ONLY = (
    "sets.random_shots",
    "encoder.gumbel_temperature",
    "diffusion.min_snr_gamma",
    "diffusion.timestep_sampling",
    "diffusion.timestep_mean",
    "diffusion.timestep_sd",
    "diffusion.weighting",
    "diffusion.weight_limit",
    "diffusion.contrastive_weight",
)
"""Parts of a configuration that affect training, but not what a trained model computes from a support."""

MAY_DIFFER = (
    *TRAINING_ONLY,
    "encoder.dropout",
    "encoder.kl_weight",
    "denoiser.dropout",
    "diffusion.clip_denoised",
    "diffusion.loss",
    "latent.autoencoder",
)
"""Parts of a configuration that may differ from what weights were trained with; the rest belongs to the weights."""


def check_same_model(trained: VFSConfig, config: VFSConfig) -> None:
    """Refuse weights of another model, and name what differs.

    `resolve_set_size` decides on the set size, unless zero images fill the slots and the weights do not reveal it.

    Raises:
        CheckpointError: patch size, channels, tokenizer, held_out or any other part of the model differs.
    """
    ours = _flat(config)
    encoder = config.encoder
    left_to_agree = ("sets.set_size",) if encoder.weights_state_set_size or not encoder.fills_slots else ()
    different = [
        f"{name} is {ours[name]!r} here, but the checkpoint was trained with {value!r}"
        for name, value in _flat(trained).items()
        if value != ours[name] and name not in (*left_to_agree, *MAY_DIFFER)
    ]
    if different:
        raise CheckpointError(
            f"The checkpoint holds another model: {'; '.join(different)}. Build the model with the checkpoint's "
            "configuration (VFSDDPM.load_from_checkpoint does), or train without the checkpoint."
        )


def _flat(config: VFSConfig) -> dict[str, Any]:
    return {f"{part}.{name}": value for part, values in config.to_dict().items() for name, value in values.items()}


def with_set_size(config: VFSConfig, set_size: int) -> VFSConfig:
    """The same configuration for sets of another size."""
    return replace(config, sets=replace(config.sets, set_size=set_size))


def _formula(config: VFSConfig, set_size: int) -> str:
    slots = replace(config.sets, set_size=set_size).slots
    patch, channels = config.encoder.patch_size, config.encoder_channels
    if not config.encoder.weights_state_set_size:
        return f"{slots} slots"
    left_out = "" if slots == set_size else f", {slots} slots"
    return f"{patch**2 * slots * channels} = {patch}\u00b2\u00b7{slots}\u00b7{channels}{left_out}"


def _mismatch(config: VFSConfig, held: int, data: int) -> str:
    return (
        f"The weights were made for sets of {held} ({_formula(config, held)}), "
        f"but the data has sets of {data} ({_formula(config, data)}). "
        f"Ways out: give the data sets of {held} (--data.set_size {held}), or have sets padded with zero images or "
        "subsampled (--model.on_set_size_mismatch adapt)."
    )


def check_batch(images_shape: tuple[int, ...], config: VFSConfig, on_mismatch: OnMismatch = "error") -> None:
    """Refuse a batch of sets that does not fit the model, and name what differs.

    Args:
        images_shape: shape of the batch, expected (b, n, c, h, w).

    Raises:
        SetSizeMismatchError: n is not the agreed set size (and `on_mismatch` is `error`).
        ValueError: another number of axes, channels or pixels.
    """
    sets = config.sets
    if len(images_shape) != 5:
        raise ValueError(
            f"A batch of sets has the shape (b, n, c, h, w), here (b, {sets.set_size}, {sets.channels}, "
            f"{sets.image_size}, {sets.image_size}); got {tuple(images_shape)}."
        )
    _, n, *image = images_shape
    if image != [sets.channels, sets.image_size, sets.image_size]:
        raise ValueError(
            f"The model takes images of shape ({sets.channels}, {sets.image_size}, {sets.image_size}); the batch has "
            f"{tuple(image)}. Set --data.channels and --data.image_size to the model's, or train a model for this data."
        )
    if config.encoder.fills_slots and n != sets.set_size and on_mismatch == "error":
        raise SetSizeMismatchError(_mismatch(config, sets.set_size, n))
    if n < 2 and sets.held_out != "none" and config.encoder.condition == "support":
        raise SetSizeMismatchError(f"A set needs at least 2 images to hold one out; the batch has sets of {n}.")


def check_range(low: float, high: float) -> None:
    """Refuse images whose values are not in [-1, 1].

    Args:
        low, high: least and largest value of a batch.

    Raises:
        ValueError: a value is not finite, or far out of [-1, 1].
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("The batch has values that are not finite: look for damaged images in the data.")
    if low < -SLACK or high > SLACK:
        raise ValueError(
            f"Images are floats in [-1, 1]; the batch has values from {low:.4g} to {high:.4g}. Scale pixels of 0 to "
            "255 by x / 127.5 - 1, or deliver them as uint8, which is scaled here."
        )
    if low >= 0 and high > 0.5:
        warnings.warn(
            f"All values of the batch are from {low:.4g} to {high:.4g}, but images are expected in [-1, 1]: scale "
            "those in [0, 1] by 2 * x - 1.",
            stacklevel=2,
        )


def check_classes(names: Sequence[str], trained: Sequence[str] | None, config: VFSConfig) -> None:
    """Compare the data's training classes with those of a class-conditional model.

    Args:
        names: classes of the data's training split.
        trained: classes that the model was trained on, if it was trained.

    Raises:
        ClassMismatchError: another number of classes, or other ones.
    """
    if len(names) != config.encoder.num_classes:
        raise ClassMismatchError(
            f"The model has contexts for {config.encoder.num_classes} classes, but the data has {len(names)} classes "
            f"to train on: set --model.config.encoder.num_classes {len(names)}."
        )
    if trained is not None and tuple(names) != tuple(trained):
        first = next(i for i, (ours, theirs) in enumerate(zip(names, trained, strict=True)) if ours != theirs)
        raise ClassMismatchError(
            f"The model was trained on other classes than the data has: its class {first} is {trained[first]!r}, the "
            f"data's {names[first]!r}. Use the data that it was trained on, split in the same way "
            "(--data.split_seed)."
        )


def patch_dim_of(state_dict: Mapping[str, Any], config: VFSConfig) -> int | None:
    """patch_dim of a model's state_dict; None for an encoder without patches.

    Raises:
        CheckpointError: the state_dict is not that of a VFSDDPM, or that of one with another encoder.
    """
    if not config.encoder.has_patches and any(name.startswith(DENOISER_PREFIX) for name in state_dict):
        return None
    if PATCH_DIM_KEY not in state_dict:
        few = ", ".join(list(state_dict)[:3]) or "nothing"
        raise CheckpointError(
            f"The file holds weights of another model: it has no `{PATCH_DIM_KEY}` (it has {few}, ...)."
        )
    return int(state_dict[PATCH_DIM_KEY].shape[0])
