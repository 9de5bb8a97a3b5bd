"""Models of states that were read from files."""

from __future__ import annotations

import torch

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import CheckpointError
from lightning_vfs.core.trust import reading
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.training.state import TrainingState, tensors


def model_of(state: TrainingState, averaged: bool = False) -> VFSDDPM:
    """The model of a state in eval mode, with its averaged weights or the raw ones.

    Raises:
        CheckpointError: averaged weights are asked for, and there are none.
    """
    if averaged and state.averaged is None:
        raise CheckpointError("There are no averaged weights (`ema_params`) in the checkpoint: use the raw ones.")
    weights = tensors(state.averaged if averaged else state.weights)  # type: ignore[arg-type]
    with reading("The checkpoint"):
        model = VFSDDPM(state.config)
        model.load_state_dict(weights)
    return model.eval()


def shapes_of(config: VFSConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's state_dict, without its memory."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in VFSDDPM(config).state_dict().items()}
