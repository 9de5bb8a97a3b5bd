"""Samplers: from noise to images over a subset of the timesteps. One interface for torch, NumPy and JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from array_api_compat import array_namespace, device

from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.errors import ConfigError

SamplerName = Literal["ddpm", "ddim"]

Loop = Callable[[Callable[[Any, Any], Any], Sequence[int], Any], Any]
"""(body, steps, x) -> x after `x = body(x, step)` for every step, in order, as `functools.reduce`."""


def sample(
    denoise: Callable[[Any, Any], Any],
    x_T: Any,  # noqa: N803 - the papers' name
    diffusion: GaussianDiffusion,
    sampler: SamplerName = "ddim",
    eta: float = 0.0,
    noise: Callable[[Any], Any] | None = None,
    loop: Loop = functools.reduce,
) -> Any:
    """Images (b, c, h, w) from noise, by walking the reverse process.

    Args:
        denoise: (x_t, t) -> model output, t int (b,) timesteps of the full process.
        x_T: standard normal noise (b, c, h, w).
        diffusion: the process over the steps to take (`GaussianDiffusion.respaced`).
        sampler: `ddpm` (ancestral) or `ddim`.
        eta: of DDIM; 0 is deterministic.
        noise: step -> standard normal noise (b, c, h, w); needed by `ddpm`, and by `ddim` with eta above 0.
        loop: what walks the steps; under jax.jit one by `lax.scan`, which compiles a step once.

    Raises:
        ConfigError: an unknown sampler, eta out of [0, 1], or no noise where the sampler needs it.
    """
    if sampler not in get_args(SamplerName):
        raise ConfigError(f"Sampler {sampler!r} is unknown; allowed: {', '.join(get_args(SamplerName))}.")
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta is {eta}; it must be from 0 (deterministic) to 1 (as noisy as DDPM).")
    if noise is None and (sampler == "ddpm" or eta > 0):
        raise ConfigError(f"Sampler {sampler} with eta {eta} draws noise at every step: give it `noise`.")
    xp = array_namespace(x_T)
    diffusion = diffusion.on(x_T)

    def body(x: Any, step: Any) -> Any:
        t = xp.full((x.shape[0],), step, device=device(x))
        model_output = denoise(x, xp.take(diffusion.timesteps, t, axis=0))
        if sampler == "ddpm":
            return diffusion.ddpm_step(model_output, x, t, noise(step))  # type: ignore[misc]
        return diffusion.ddim_step(model_output, x, t, t - 1, eta, noise(step) if eta > 0 else None)  # type: ignore[misc]

    return loop(body, range(diffusion.num_steps)[::-1], x_T)
