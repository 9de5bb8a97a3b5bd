"""Checks of what may be asked of a model: supports, labels, null contexts, guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import ConfigError, SetSizeMismatchError
from lightning_vfs.core.sampling_config import SamplingConfig


class Condition(NamedTuple):
    """What images are generated from, one for each image or shared by several; both are None without conditioning.

    Attributes:
        support: (b, k, c, h, w) in [-1, 1], k from 1 to `SetConfig.shots`.
        label: int (b,), training classes.
    """

    support: Any = None
    label: Any = None

    @property
    def size(self) -> int:
        """Number of conditions (b); 1 without conditioning."""
        given = self.label if self.support is None else self.support
        return 1 if given is None else len(given)

    def check(self, config: VFSConfig) -> None:
        """Refuse a condition that the model does not take, and the lack of one that it needs.

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ValueError: images of another shape, a class that the model does not know, a support or a label that is
                missing, or one that the model does not take.
        """
        wanted = config.encoder.condition
        if wanted == "support" and (self.support is None or self.label is not None):
            raise ValueError("This model is conditioned on a support (b, k, c, h, w) and nothing else: give it one.")
        if self.support is not None:
            check_support(tuple(self.support.shape), config)
        if self.label is not None:
            check_labels(self.label.tolist(), config)
        elif wanted == "label":
            raise missing_label(config)


def check_support(shape: tuple[int, ...], config: VFSConfig) -> None:
    """Refuse a support (b, k, c, h, w) that the model cannot take.

    Raises:
        SetSizeMismatchError: no image, or more than `shots`.
        ValueError: another shape of images, or a model that takes no support.
    """
    sets = config.sets
    if config.encoder.condition != "support":
        raise ValueError(
            f"This model is not conditioned on a support (encoder.architecture is {config.encoder.architecture!r}): "
            "leave it out."
        )
    if len(shape) != 5 or list(shape[2:]) != [sets.channels, sets.image_size, sets.image_size]:
        raise ValueError(
            f"A support has the shape (b, k, {sets.channels}, {sets.image_size}, {sets.image_size}) "
            f"with k from 1 to {sets.shots}; got {tuple(shape)}."
        )
    k = shape[1]
    if k < 1 or (config.encoder.fills_slots and k > sets.shots):
        raise SetSizeMismatchError(
            f"The support has {k} images; this model takes 1 to {sets.shots} (sets of {sets.set_size}, held_out "
            f"{sets.held_out}). Give it at most {sets.shots}."
        )


def check_labels(labels: Sequence[int], config: VFSConfig) -> None:
    """Refuse labels that the model does not know.

    Raises:
        ValueError: a label out of range, or a model that takes none.
    """
    encoder = config.encoder
    if encoder.condition != "label":
        raise ValueError(
            f"This model is not conditioned on a class label (encoder.architecture is {encoder.architecture!r}): "
            "leave it out."
        )
    strange = sorted({label for label in labels if not 0 <= label < encoder.num_classes})
    if strange:
        raise ValueError(
            f"There is no class {', '.join(map(str, strange[:5]))}: this model knows only its {encoder.num_classes} "
            f"training classes, 0 to {encoder.num_classes - 1}."
        )


def missing_label(config: VFSConfig) -> ValueError:
    """The error for a class-conditional model without a label."""
    return ValueError(
        "This model is conditioned on the class (encoder.architecture 'class_label'): give it `label`, integers (b,), "
        f"labels of training classes from 0 to {config.encoder.num_classes - 1}."
    )


def missing_timestep() -> ValueError:
    """The error for an encoder that sees the timestep, but gets none."""
    return ValueError(
        "This encoder was built with time_token `timestep`: it needs the timestep t (int, shape (b,)), "
        "in training and at every sampling step."
    )


def missing_latent_noise() -> ValueError:
    """The error for a loss with a variational context without the noise to draw it."""
    return ValueError("A variational context is drawn in training: give `latent_noise`.")


def check_null_context(config: VFSConfig) -> None:
    """Refuse to drop contexts of a model without a null context.

    Raises:
        ValueError: the model has no null context.
    """
    if not config.encoder.context_dropout:
        raise ValueError("This model has no null context: leave `dropped` out, or build it with context_dropout.")


def check_guidance(sampling: SamplingConfig, config: VFSConfig) -> None:
    """Refuse guidance of a model that was trained without a null context.

    Raises:
        ConfigError: the model has no null context.
    """
    if sampling.is_guided and not config.encoder.context_dropout:
        raise ConfigError(
            f"guidance_scale is {sampling.guidance_scale}, but this model was trained without a null context: set "
            "guidance_scale to 1, or train with --model.config.encoder.context_dropout 0.1."
        )
