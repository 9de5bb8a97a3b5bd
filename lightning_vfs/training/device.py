"""Settings of the device that a run is on: the precision of float32 products, and the memory format of UNets."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from lightning_vfs.core.errors import ConfigError

MatmulPrecision = Literal["highest", "high", "medium"]


def check_matmul_precision(value: MatmulPrecision | None) -> None:
    """Raise ConfigError for a precision that torch does not have."""
    allowed = get_args(MatmulPrecision)
    if value is not None and value not in allowed:
        raise ConfigError(
            f"float32_matmul_precision is {value!r}; allowed: {', '.join(map(repr, allowed))}, or null "
            "for the device's."
        )


def set_matmul_precision(device: torch.device, wanted: MatmulPrecision | None) -> None:
    """Set the precision of float32 matrix products (`torch.set_float32_matmul_precision`), for the whole process.

    Args:
        device: of the run.
        wanted: None is `high` (TF32) on CUDA, unless another has been set already, and no change elsewhere.
    """
    if wanted is not None:
        torch.set_float32_matmul_precision(wanted)
    elif device.type == "cuda" and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("high")


def set_memory_format(model: nn.Module, device: torch.device, channels_last: bool | None) -> None:
    """Set the memory format in which the convolutions of a model's UNets are fastest.

    Args:
        model: its UNets are changed in place.
        device: that the run is on.
        channels_last: None is True on CUDA, and no change elsewhere.
    """
    if channels_last is None and device.type != "cuda":
        return
    layout = torch.contiguous_format if channels_last is False else torch.channels_last
    for network in _convolutional(model):
        network.to(memory_format=layout)


def memory_format(model: nn.Module) -> Literal["channels_last", "contiguous"] | None:
    """How the UNets of a model are laid out; None for a model without one."""
    weights = [weight for network in _convolutional(model) for weight in network.parameters()]
    if not weights:
        return None
    return "contiguous" if all(weight.is_contiguous() for weight in weights) else "channels_last"


def _convolutional(model: nn.Module) -> list[nn.Module]:
    """Networks of a model that are made of convolutions; one patch embedding does not make a network so."""
    return [network for network in model.children() if getattr(network, "is_convolutional", False)]
