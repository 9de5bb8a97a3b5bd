"""Augmentation of training batches, drawn by the global index of every set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.checks import choose, is_path
from lightning_vfs.core.errors import ConfigError

_STREAM = 2
"""Keeps these random numbers apart from those that draw sets and episodes with the same seed."""


class Augmentation:
    """Transforms that change each image of a set by itself.

    What they draw depends on the seed and the global index of the set, not on the batch, the worker or the rank. The
    state of torch's random numbers is left as it was.

    Args:
        transforms: take and return uint8 (c, h, w), and draw from torch's default generator, as those of
            torchvision.transforms.v2 do.
    """

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.transforms = transforms

    @classmethod
    def of(cls, specs: Sequence[Mapping[str, Any]] | None, channels: int, image_size: int) -> Augmentation | None:
        """The transforms of a configuration, tried on an image; None without any.

        Args:
            specs: for each `class_path`, and perhaps `init_args`.
            channels, image_size: of the images.

        Raises:
            ConfigError: there is no such transform, it does not take these arguments, or it makes something else of an
                image than one of the same size.
        """
        if not specs:
            return None
        made = cls([_transform(spec) for spec in specs])
        image = torch.full((channels, image_size, image_size), 128, dtype=torch.uint8)
        for spec, transform in zip(specs, made.transforms, strict=True):
            try:
                result = cls([transform])(image[None, None], np.zeros(1, dtype=np.int64), 0)
            except Exception as error:  # a transform may raise anything
                raise ConfigError(f"augmentation: {spec['class_path']} fails on an image: {error}") from error
            if result.shape[2:] != image.shape or result.dtype != torch.uint8:
                raise ConfigError(
                    f"augmentation: {spec['class_path']} makes {result.dtype} {tuple(result.shape[2:])} of an image, "
                    f"torch.uint8 {tuple(image.shape)}; it must keep both."
                )
        return made

    def __call__(self, images: Tensor, index: np.ndarray, seed: int) -> Tensor:
        """Change the images.

        Args:
            images: uint8 (b, n, c, h, w).
            index: int64 (b,), global index of every set.
            seed: not negative.

        Returns:
            uint8 (b, n, c, h, w).
        """
        before = torch.get_rng_state()
        try:
            return torch.stack([self._of_set(*each, seed) for each in zip(images, index.tolist(), strict=True)])
        finally:
            torch.set_rng_state(before)

    def _of_set(self, images: Tensor, index: int, seed: int) -> Tensor:
        (state,) = np.random.SeedSequence((seed, index, _STREAM)).generate_state(1, np.uint64)
        # not torch.manual_seed, which seeds the generators of GPUs too
        torch.default_generator.manual_seed(int(state >> np.uint64(1)))
        return torch.stack([self._of_image(image) for image in images])

    def _of_image(self, image: Tensor) -> Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image


def _transform(spec: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    example = "{class_path: torchvision.transforms.v2.RandomHorizontalFlip, init_args: {p: 0.5}}"
    path = spec.get("class_path") if isinstance(spec, Mapping) else None
    if not isinstance(path, str) or not is_path(path) or set(spec) - {"class_path", "init_args"}:
        raise ConfigError(f"augmentation has {spec!r}; each transform must be given as {example}.")
    kind = choose(path, {})
    try:
        transform: Callable[[Tensor], Tensor] = kind(**(spec.get("init_args") or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augmentation: {path} cannot be made with {spec.get('init_args')}: {error}") from error
    return transform
