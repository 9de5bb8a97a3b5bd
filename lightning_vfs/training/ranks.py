"""Gathering over ranks; in a single process, its own value."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(values: Tensor) -> Tensor:
    """Rows (m, ...) of all ranks in the order of ranks, (world * m, ...), without gradient; collective.

    Args:
        values: as many rows on every rank, on the device that the ranks exchange data on.
    """
    if world_size() == 1:
        return values
    gathered = torch.empty((world_size() * len(values), *values.shape[1:]), dtype=values.dtype, device=values.device)
    dist.all_gather_into_tensor(gathered, values.contiguous())
    return gathered


def gather_objects(value: T) -> list[T]:
    """The value of every rank, in their order; what can be pickled. Collective."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values
