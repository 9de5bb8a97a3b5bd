"""Gathering over ranks; in a single process, its own value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

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


def on_first_rank(value: Callable[[], T]) -> T:
    """`value()`, computed by the first rank and sent to the others, as is an exception that it raises. Collective."""
    if world_size() == 1:
        return value()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = value()
        except Exception as error:  # the other ranks would wait forever
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
