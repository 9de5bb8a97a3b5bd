"""The torch model's random numbers in JAX: 64-bit integers are pairs of uint32, so x64 mode is not needed."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The stream of the noise that sampling starts from; sampling steps take 0 and up.
START = -1


class UInt64(NamedTuple):
    """64-bit integers modulo 2**64, as arrays of their high and low 32 bits; signed ones in two's complement."""

    high: jax.Array
    low: jax.Array


_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uint64(value: int | np.ndarray | jax.Array | UInt64) -> UInt64:
    """The pair of an integer or of an array of them; a pair is given back.

    Raises:
        OverflowError: a Python integer of more than 64 bits.
    """
    if isinstance(value, UInt64):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise OverflowError(f"{value} has more than 64 bits: it must be from -2**63 to 2**64 - 1.")
        return UInt64(jnp.uint32(value >> 32 & 0xFFFFFFFF), jnp.uint32(value & 0xFFFFFFFF))
    if value.dtype.itemsize == 8:
        return UInt64(jnp.asarray((value >> 32).astype(np.uint32)), jnp.asarray(value.astype(np.uint32)))
    low = jnp.asarray(value).astype(jnp.uint32)
    return UInt64(jnp.where(value < 0, jnp.full_like(low, 0xFFFFFFFF), 0), low)


def _add(a: UInt64, b: UInt64) -> UInt64:
    low = a.low + b.low
    carry = (low < b.low).astype(np.uint32)
    return UInt64(a.high + b.high + carry, low)


def _multiply(a: UInt64, b: UInt64) -> UInt64:
    return UInt64(_upper_half(a.low, b.low) + a.low * b.high + a.high * b.low, a.low * b.low)


def _upper_half(a: jax.Array, b: jax.Array) -> jax.Array:
    """High 32 bits of the product of two uint32, by halves of 16 bits."""
    half = 0xFFFF
    a_high, a_low, b_high, b_low = a >> 16, a & half, b >> 16, b & half
    cross_1, cross_2 = a_high * b_low, a_low * b_high
    middle = (a_low * b_low >> 16) + (cross_1 & half) + (cross_2 & half)
    return a_high * b_high + (cross_1 >> 16) + (cross_2 >> 16) + (middle >> 16)


def _xor_shifted(a: UInt64, bits: int) -> UInt64:
    """a ^ (a >> bits), for less than 32 bits."""
    return UInt64(a.high ^ (a.high >> bits), a.low ^ (a.low >> bits | a.high << (32 - bits)))


def _mix(a: UInt64) -> UInt64:
    """The finalizer of splitmix64 (Steele et al. 2014): a bijection of 64-bit integers that hides their order."""
    a = _multiply(_xor_shifted(a, 30), uint64(_MIX_1))
    a = _multiply(_xor_shifted(a, 27), uint64(_MIX_2))
    return _xor_shifted(a, 31)


def indexed_bits(index: jax.Array | np.ndarray, count: int, seed: int | UInt64, stream: int | jax.Array) -> UInt64:
    """64 random bits each: index int (m,) -> (m, count), by counter (splitmix64 from a start per sample)."""
    golden = uint64(_GOLDEN)
    start = _mix(_add(_multiply(uint64(index), golden), uint64(seed)))
    start = _mix(_add(start, _multiply(uint64(stream), golden)))
    low = jnp.arange(1, count + 1, dtype=jnp.uint32)
    counter = _multiply(UInt64(jnp.zeros_like(low), low), golden)
    return _mix(_add(UInt64(start.high[:, None], start.low[:, None]), counter))


def indexed_normal(
    index: jax.Array | np.ndarray, shape: tuple[int, ...], seed: int | UInt64, stream: int | jax.Array = 0
) -> jax.Array:
    """Standard normal numbers by Box and Muller: index int (m,) -> float32 (m, *shape).

    The numbers of `lightning_vfs.modules.noise.indexed_normal`, to the rounding of logarithm and cosine.

    Args:
        index: global sample indices; 64-bit ones as a NumPy array.
        shape: of the noise of one sample.
        seed: an integer of 64 bits, or the pair of one, which can be an argument of a jitted function.
        stream: other numbers for every stream (a sampling step, say) of one seed; may be traced.

    Raises:
        OverflowError: the seed has more than 64 bits.
    """
    bits = indexed_bits(index, math.prod(shape), seed, stream)
    radius = jnp.sqrt(-2 * jnp.log(((bits.high >> 8).astype(jnp.float32) + 0.5) * 2**-24))
    angle = (bits.low >> 8).astype(jnp.float32) * (2 * math.pi * 2**-24)
    return (radius * jnp.cos(angle)).reshape(-1, *shape)
