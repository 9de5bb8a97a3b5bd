"""What tells two checkpoints apart, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names, joined by slashes, and values of nested mappings and lists."""
    if isinstance(values, dict | list | tuple):
        for name, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from leaves(value, f"{prefix}/{name}")
    else:
        yield prefix, values


def unequal(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Names whose values are not equal in both."""
    names = one.keys() | two.keys()
    return sorted(n for n in names if n not in one or n not in two or not _equal(one[n], two[n]))


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        # Bits, since some of the numbers may be NaN.
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(_bytes(one), _bytes(two))
    return bool(one == two)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(-1).view(torch.uint8)
