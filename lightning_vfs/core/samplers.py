"""Samplers: from noise to images over a subset of the timesteps. One interface for torch, NumPy and JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace, device
from jaxtyping import Float

from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig

Loop = Callable[[Callable[[Any, Any], Any], Sequence[int], Any], Any]
"""(body, steps, state) -> state after `state = body(state, step)` for every step, in order, as `functools.reduce`.

The state is an array, or a tuple of arrays of constant shapes.
"""


def sample(
    denoise: Callable[[Any, Any, Any], Any],
    x_T: Float[Any, "b c h w"],  # noqa: N803 - the papers' name
    diffusion: GaussianDiffusion,
    sampler: SamplerName = "ddim",
    eta: float = 0.0,
    noise: Callable[[Any], Any] | None = None,
    loop: Loop = functools.reduce,
) -> Float[Any, "b c h w"]:
    """Images (b, c, h, w) from noise, by walking the reverse process.

    Args:
        denoise: (x_t, t, step) -> model output. t is int (b,), timesteps of the full process; `step`, an index of
            `diffusion.timesteps`, counts the steps that are taken, down to 0: what `loop` gives, as a rule an int.
        x_T: standard normal noise (b, c, h, w).
        diffusion: the process over the steps to take (`GaussianDiffusion.respaced`).
        sampler: `ddpm` (ancestral), `ddim`, or `dpmpp_2m` (DPM-Solver++(2M), deterministic).
        eta: of DDIM; 0 is deterministic.
        noise: step -> standard normal noise (b, c, h, w); needed by `ddpm`, and by `ddim` with eta above 0.
        loop: what walks the steps; under jax.jit one by `lax.scan`, which compiles a step once.

    Raises:
        ConfigError: an unknown sampler, eta out of [0, 1] or above 0 for another sampler than DDIM, or no noise where
            the sampler needs it.
    """
    SamplingConfig(diffusion.num_steps, sampler, eta)  # refuses what cannot be
    if noise is None and (sampler == "ddpm" or eta > 0):
        raise ConfigError(f"Sampler {sampler} with eta {eta} draws noise at every step: give it `noise`.")
    xp = array_namespace(x_T)
    diffusion = diffusion.on(x_T)

    def model(x: Any, step: Any) -> tuple[Any, Any]:
        t = xp.full((x.shape[0],), step, device=device(x))
        return denoise(x, xp.take(diffusion.timesteps, t, axis=0), step), t

    def ddpm(x: Any, step: Any) -> Any:
        output, t = model(x, step)
        return diffusion.ddpm_step(output, x, t, noise(step))  # type: ignore[misc]

    def ddim(x: Any, step: Any) -> Any:
        output, t = model(x, step)
        return diffusion.ddim_step(output, x, t, t - 1, eta, noise(step) if eta > 0 else None)  # type: ignore[misc]

    def dpmpp_2m(state: tuple[Any, Any], step: Any) -> tuple[Any, Any]:
        x, x_0_before = state
        output, t = model(x, step)
        return diffusion.dpmpp_2m_step(output, x, t, x_0_before)

    steps = range(diffusion.num_steps)[::-1]
    if sampler == "dpmpp_2m":
        return loop(dpmpp_2m, steps, (x_T, xp.zeros_like(x_T)))[0]
    return loop(ddpm if sampler == "ddpm" else ddim, steps, x_T)
