"""Numbers in the precision that they need, whatever the precision of the weights."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32, or float64 if they are: losses, noise and sampling lose too much in less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
