"""Counter-based random bits by splitmix64 (Steele et al. 2014), on int64 arrays of torch and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""The increment of splitmix64's counter; like the factors of its finalizer as a signed integer, which arrays take."""

MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def shift_right(x: Any, bits: int) -> Any:
    """Logical shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Any) -> Any:
    """The finalizer of splitmix64: a bijection of 64-bit integers that hides their order."""
    x = (x ^ shift_right(x, 30)) * MIX[0]
    x = (x ^ shift_right(x, 27)) * MIX[1]
    return x ^ shift_right(x, 31)


def random_bits(index: np.ndarray, column: np.ndarray, seed: int) -> np.ndarray:
    """Uniform uint64 for each (seed, index, column); index and column are int64 arrays that broadcast."""
    start = mix(np.array([seed % 2**64], dtype=np.uint64).view(np.int64) + GOLDEN)
    return mix(mix(start + index + GOLDEN) + column + GOLDEN).view(np.uint64)
