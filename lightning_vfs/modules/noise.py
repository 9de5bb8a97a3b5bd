"""Random numbers that depend on a sample's global index alone: not on batch size, rank, worker or device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Streams of one seed: sampling steps take 0 and up, the rest stays clear of them.
START, TIMESTEP, NOISE, LATENT, SHOTS, DROPPED, DROPOUT = -1, -2, -3, -4, -5, -6, -7

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer, as are the two below
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of a signed integer."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele et al. 2014): a bijection of 64-bit integers that hides their order."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def random_bits(index: Tensor, count: int, seed: int = 0, stream: int = 0) -> Tensor:
    """64 random bits each: index int64 (m,) -> int64 (m, count), by counter (splitmix64 from a start per sample)."""
    start = _mix(_mix(index * _GOLDEN + seed) + torch.full_like(index, stream) * _GOLDEN)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=index.device)
    return _mix(start[:, None] + counter * _GOLDEN)


def sample_keys(index: Tensor, count: int, seed: int) -> Tensor:
    """Keys that the dropout of a training step follows: index int64 (m,) of sets -> int64 (m, count)."""
    return random_bits(index, count, seed, DROPOUT)


def indexed_uniform(index: Tensor, seed: int, stream: int = 0, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1): index int64 (m,) -> float32 (m, *shape)."""
    bits = random_bits(index, math.prod(shape), seed, stream)
    return (_shift_right(bits, 40).float() * 2**-24).reshape(-1, *shape)


def indexed_normal(index: Tensor, shape: tuple[int, ...], seed: int, stream: int = 0) -> Tensor:
    """Standard normal numbers by Box and Muller: index int64 (m,) -> float32 (m, *shape).

    Args:
        index: global sample indices.
        seed, stream: other numbers for another seed, and for every stream (a sampling step, say) of one seed.
    """
    bits = random_bits(index, math.prod(shape), seed, stream)
    radius = (-2 * ((_shift_right(bits, 40).float() + 0.5) * 2**-24).log()).sqrt()
    angle = (_shift_right(bits, 8) & (2**24 - 1)).float() * (2 * math.pi * 2**-24)
    return (radius * angle.cos()).reshape(-1, *shape)
