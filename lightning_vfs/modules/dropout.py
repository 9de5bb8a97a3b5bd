"""Dropout whose masks follow the samples: not the rank, the batch or the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_vfs.modules.noise import random_bits

_LEVELS = 2**16


class Dropout(nn.Module):
    """Zeroes features with probability p and scales the rest by 1 / (1 - p), in training: (b, ...) -> (b, ...).

    The mask is a function of the sample's key, int64 (b,), and of the layer's number in its network: torch's own draws
    from a generator of the device, so that it differs between ranks, and after a resume. p is rounded to 2^-16.

    Raises:
        ValueError: no key in training.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped_levels = min(round(p * _LEVELS), _LEVELS - 1)
        self.number = 0

    def forward(self, x: Tensor, key: Tensor | None) -> Tensor:
        if not self.training or not self.dropped_levels:
            return x
        if key is None:
            raise ValueError(
                "Dropout in training follows the samples: give `key` (`dropout_key` of the model's losses), int64, one "
                "random number per sample as `sample_keys` makes them; or call eval() first."
            )
        kept = keep_mask(key, math.prod(x.shape[1:]), self.number, self.dropped_levels).reshape(x.shape)
        return torch.where(kept, x * (_LEVELS / (_LEVELS - self.dropped_levels)), 0.0)


# A custom operator, because Inductor computes indices as if integers had no limit, and these must wrap around.
@torch.library.custom_op("lightning_vfs::keep_mask", mutates_args=())
def keep_mask(key: Tensor, count: int, stream: int, dropped_levels: int) -> Tensor:
    """Which features stay: key int64 (b,) -> bool (b, count), each False with probability dropped_levels / 2^16."""
    # Each number of 64 bits holds four levels.
    levels = random_bits(key, -(-count // 4), stream=stream).view(torch.int16)[:, :count]
    return levels >= dropped_levels - _LEVELS // 2


@keep_mask.register_fake
def _(key: Tensor, count: int, stream: int, dropped_levels: int) -> Tensor:
    return key.new_empty((len(key), count), dtype=torch.bool)


def number_dropout(network: nn.Module) -> None:
    """Give every dropout layer of a network its own number, so that no two have the same masks."""
    layers = (layer for layer in network.modules() if isinstance(layer, Dropout))
    for number, layer in enumerate(layers):
        layer.number = number
