"""The twin's random numbers are the torch model's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lightning_vfs.flax.noise import START, indexed_bits, indexed_normal, uint64
from lightning_vfs.modules import noise as in_torch
from tests.numerics import rounding

pytestmark = pytest.mark.numeric

INDEX = np.array([0, 1, 5, 2**31 - 1, 2**32, 2**40 + 3, -9, 2**63 - 1, -(2**63)])
SEEDS = [0, 1, -5, 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1, 123456789012345]
STREAMS = [0, 7, 999, START, in_torch.LATENT]


def as_uint64(bits) -> np.ndarray:
    return (np.asarray(bits.high).astype(np.uint64) << np.uint64(32)) | np.asarray(bits.low)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_integers_are_those_of_torch(seed: int, stream: int) -> None:
    expected = in_torch.random_bits(torch.from_numpy(INDEX), 37, seed, stream).numpy().view(np.uint64)
    np.testing.assert_array_equal(as_uint64(indexed_bits(INDEX, 37, seed, stream)), expected)


def test_integers_stay_the_same_with_a_traced_index_seed_and_stream() -> None:
    index, seed = np.array([0, 3, 2**31 - 1, -4], dtype=np.int32), 2**63 + 11
    bits = jax.jit(lambda index, seed, stream: indexed_bits(index, 37, seed, stream))
    for stream in (-3, 0, 12):
        expected = in_torch.random_bits(torch.from_numpy(index).long(), 37, seed, stream).numpy().view(np.uint64)
        np.testing.assert_array_equal(as_uint64(bits(index, uint64(seed), jnp.int32(stream))), expected)


def test_normals_are_those_of_torch_to_rounding() -> None:
    index = np.arange(200, dtype=np.int32)
    normals = jax.jit(lambda stream: indexed_normal(index, (3, 8, 8), 5, stream))
    for stream in (START, 0, 17):
        expected = in_torch.indexed_normal(torch.from_numpy(index).long(), (3, 8, 8), 5, stream)
        found = normals(stream)
        assert found.dtype == jnp.float32
        # Normals reach 5, and the angle of Box and Muller 2 pi.
        np.testing.assert_allclose(found, expected.numpy(), **rounding(2 * 3, scale=5))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_that_torch_refuses_are_refused(seed: int) -> None:
    with pytest.raises(OverflowError):
        in_torch.random_bits(torch.tensor([0]), 1, seed, 0)
    with pytest.raises(OverflowError, match="more than 64 bits"):
        indexed_normal(np.arange(2), (1,), seed)
