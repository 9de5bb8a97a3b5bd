"""Contexts of supports and images from them, compiled once for every shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.guidance import guided
from lightning_vfs.core.samplers import sample
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.flax.few_shot_diffusion import FewShotDiffusion, Params
from lightning_vfs.flax.noise import START, UInt64, indexed_normal


@functools.partial(jax.jit, static_argnames="module")
def encode(module: FewShotDiffusion, params: Params, support: jax.Array, t: jax.Array | None) -> jax.Array:
    """Contexts that condition generation, as `FewShotDiffusion.encode` gives them."""
    return module.run(params, support, t, method="encode")


@functools.partial(jax.jit, static_argnames=("module", "sampling"))
def generate(
    module: FewShotDiffusion,
    params: Params,
    conditions: jax.Array | None,
    context_index: jax.Array,
    index: jax.Array,
    seed: UInt64,
    *,
    sampling: SamplingConfig,
) -> jax.Array:
    """One image (c, h, w) in [-1, 1] for every global index; its noise depends only on index and seed.

    Args:
        conditions: contexts (b, ...); where the encoder sees the timestep, supports (b, k, c, h, w); None without
            conditioning.
        context_index: int (m,), which of the conditions an image has.
        index: int (m,), global sample indices.
        sampling: guided only where the parameters have a null context.

    Raises:
        ConfigError: more steps than the process has.
    """
    config = module.config
    image = (config.denoiser_channels, config.denoiser_size, config.denoiser_size)
    noise = functools.partial(indexed_normal, index, image, seed)
    process = GaussianDiffusion(config.diffusion).respaced(sampling.steps)
    scales = jnp.asarray(sampling.guidance_scales(process.timesteps), dtype=jnp.float32)
    denoiser = functools.partial(module.run, params, method="denoise")

    def contexts(t: jax.Array) -> jax.Array | None:
        if conditions is None or config.encoder.time_token != "timestep":
            return conditions
        return module.run(params, conditions, jnp.repeat(t[:1], len(conditions)), method="encode")

    def denoise(x_t: jax.Array, t: jax.Array, step: jax.Array) -> jax.Array:
        of_conditions = contexts(t)
        context = None if of_conditions is None else of_conditions[context_index]
        if context is None or not sampling.is_guided:
            return denoiser(x_t, t, context)

        def with_guidance() -> jax.Array:
            null = jnp.broadcast_to(params["null_context"], context.shape)
            outputs = denoiser(_side_by_side(x_t, x_t), _side_by_side(t, t), _side_by_side(context, null))
            conditional, unconditional = jnp.moveaxis(outputs.reshape(-1, 2, *outputs.shape[1:]), 1, 0)
            return guided(conditional, unconditional, scales[step], image[0])

        if sampling.guidance_interval is None:
            return with_guidance()
        # Outside of the interval the half without a condition is not computed.
        return jax.lax.cond(scales[step] == 1, lambda: denoiser(x_t, t, context), with_guidance)

    images = sample(
        denoise, noise(stream=START), process, sampling.sampler, sampling.eta, lambda step: noise(stream=step), _scan
    )
    return jnp.clip(images, -1, 1)


def _side_by_side(a: jax.Array, b: jax.Array) -> jax.Array:
    """a[0], b[0], a[1], b[1], ...: an image and its twin lie on one device. (m, ...) twice -> (2m, ...)."""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def _scan(body: Callable[[Any, Any], Any], steps: Sequence[int], state: Any) -> Any:
    """Walks the sampler's steps in one compiled loop."""
    return jax.lax.scan(lambda state, step: (body(state, step), None), state, jnp.asarray(steps))[0]
