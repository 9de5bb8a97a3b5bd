"""Contexts of supports and images from them, compiled once for every shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.samplers import SamplerName, sample
from lightning_vfs.flax.networks import Networks, Params
from lightning_vfs.flax.noise import START, UInt64, indexed_normal


@functools.partial(jax.jit, static_argnames="networks")
def guide(networks: Networks, params: Params, support: jax.Array, t: jax.Array | None) -> jax.Array:
    """Contexts that condition generation: (b, k, c, h, w), int (b,) or None -> (b, d).

    Raises:
        ValueError: no t for an encoder that sees it.
    """
    return networks.guide(params, support, t)


@functools.partial(jax.jit, static_argnames=("networks", "steps", "sampler", "eta"))
def generate(
    networks: Networks,
    params: Params,
    guides: jax.Array,
    support_of: jax.Array,
    index: jax.Array,
    seed: UInt64,
    *,
    steps: int,
    sampler: SamplerName,
    eta: float,
) -> jax.Array:
    """One image (c, h, w) in [-1, 1] for every global index; its noise depends on index and seed alone.

    Args:
        guides: contexts (b, d); where the encoder sees the timestep, supports (b, k, c, h, w).
        support_of: int (m,), which of the guides an image has.
        index: int (m,), global sample indices.

    Raises:
        ConfigError: an unknown sampler, or steps or eta out of range.
    """
    sets = networks.config.sets
    noise = functools.partial(indexed_normal, index, (sets.channels, sets.image_size, sets.image_size), seed)
    sees_timestep = networks.config.encoder.time_token == "timestep"

    def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
        contexts = networks.guide(params, guides, jnp.repeat(t[:1], len(guides))) if sees_timestep else guides
        return networks.denoise(params, x_t, t, contexts[support_of])

    process = GaussianDiffusion(networks.config.diffusion).respaced(steps)
    images = sample(denoise, noise(stream=START), process, sampler, eta, lambda step: noise(stream=step), _scan)
    return jnp.clip(images, -1, 1)


def _scan(body: Callable[[Any, Any], Any], steps: Sequence[int], x: jax.Array) -> jax.Array:
    """Walks the sampler's steps in one compiled loop."""
    return jax.lax.scan(lambda x, step: (body(x, step), None), x, jnp.asarray(steps))[0]
