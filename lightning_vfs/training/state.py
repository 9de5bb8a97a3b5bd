"""The state of a training run, independent of file formats: what checkpoints of different systems share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import CheckpointError

Arrays = Mapping[str, np.ndarray]


class Moments(NamedTuple):
    """AdamW's running averages of the gradient and of its square, by parameter."""

    first: Arrays
    second: Arrays


@dataclass(frozen=True)
class TrainingState:
    """Weights of a run by the names of the state_dict, and what is needed to resume.

    Args:
        config: the model's configuration.
        weights: the weights as the optimizer has them.
        averaged: the averaged weights (EMA), if there are any.
        moments: AdamW's, if they are known.
        step: optimizer steps taken.
        optimizer: of the run, `OptimizerConfig.name`.
    """

    config: VFSConfig
    weights: Arrays
    averaged: Arrays | None = None
    moments: Moments | None = None
    step: int = 0
    optimizer: str = "adamw"

    def check_resumable(self) -> None:
        """Refuse to write the state of a run for another to resume, if its optimizer's state has no place in it.

        Raises:
            CheckpointError: the optimizer was not AdamW.
        """
        if self.optimizer != "adamw":
            raise CheckpointError(
                f"The checkpoint was trained with the optimizer {self.optimizer!r}, whose state cannot be converted, "
                "only AdamW's moments: convert its weights, --to pretrained, and what that writes to other formats."
            )


def tensors(values: Arrays) -> dict[str, Tensor]:
    """Tensors of arrays, by name."""
    return {name: torch.from_numpy(value) for name, value in values.items()}


def arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Float32 arrays of tensors, by name."""
    return {name: value.detach().float().cpu().numpy() for name, value in values.items()}
