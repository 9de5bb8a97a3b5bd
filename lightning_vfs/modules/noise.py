"""Random numbers that depend only on a sample's global index: not on batch size, rank, worker or device."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_vfs.core.random_bits import GOLDEN, mix, shift_right

# Streams of one seed: sampling steps take 0 and up, the rest stays clear of them.
START, TIMESTEP, NOISE, LATENT, SHOTS, DROPPED, DROPOUT = -1, -2, -3, -4, -5, -6, -7


def random_bits(index: Int[Tensor, " m"], count: int, seed: int = 0, stream: int = 0) -> Int[Tensor, "m {count}"]:
    """64 random bits each: index int64 (m,) -> int64 (m, count), by counter (splitmix64 from a start per sample)."""
    start = mix(mix(index * GOLDEN + seed) + torch.full_like(index, stream) * GOLDEN)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=index.device)
    return mix(start[:, None] + counter * GOLDEN)


def sample_keys(index: Int[Tensor, " m"], count: int, seed: int) -> Int[Tensor, "m {count}"]:
    """Keys that the dropout of a training step follows: index int64 (m,) of sets -> int64 (m, count)."""
    return random_bits(index, count, seed, DROPOUT)


def indexed_uniform(
    index: Int[Tensor, " m"], seed: int, stream: int = 0, shape: tuple[int, ...] = ()
) -> Float[Tensor, " m *shape"]:
    """Uniform numbers in [0, 1): index int64 (m,) -> float32 (m, *shape)."""
    bits = random_bits(index, math.prod(shape), seed, stream)
    return (shift_right(bits, 40).float() * 2**-24).reshape(-1, *shape)


def indexed_normal(
    index: Int[Tensor, " m"], shape: tuple[int, ...], seed: int, stream: int = 0
) -> Float[Tensor, " m *shape"]:
    """Standard normal numbers by Box and Muller: index int64 (m,) -> float32 (m, *shape).

    Args:
        index: global sample indices.
        seed, stream: other numbers for another seed, and for every stream (a sampling step, say) of one seed.
    """
    bits = random_bits(index, math.prod(shape), seed, stream)
    radius = (-2 * ((shift_right(bits, 40).float() + 0.5) * 2**-24).log()).sqrt()
    angle = (shift_right(bits, 8) & (2**24 - 1)).float() * (2 * math.pi * 2**-24)
    return (radius * angle.cos()).reshape(-1, *shape)
