"""Samplers: from noise to images over a subset of the timesteps. One interface for torch, NumPy and JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace, device
from jaxtyping import Float

from lightning_vfs.core.checks import choose
from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig

Loop = Callable[[Callable[[Any, Any], Any], Sequence[int], Any], Any]
"""(body, steps, state) -> state after `state = body(state, step)` for every step, in order, as `functools.reduce`.

The state is an array, or a tuple of arrays of constant shapes.
"""

Noise = Callable[[Any], Any]
"""step -> standard normal noise (b, c, h, w)."""

Model = Callable[[Any, Any], tuple[Any, Any]]
"""(x, step) -> the model's output, and `step` as int (b,): an index of the process that is walked."""


def ddpm(model: Model, x_T: Any, diffusion: GaussianDiffusion, eta: float, noise: Noise, loop: Loop) -> Any:  # noqa: N803
    """Ancestral sampling (Ho et al. 2020)."""

    def step(x: Any, i: Any) -> Any:
        output, t = model(x, i)
        return diffusion.ddpm_step(output, x, t, noise(i))

    return loop(step, _steps(diffusion), x_T)


def ddim(model: Model, x_T: Any, diffusion: GaussianDiffusion, eta: float, noise: Noise, loop: Loop) -> Any:  # noqa: N803
    """Song et al. 2021; deterministic with an eta of 0."""

    def step(x: Any, i: Any) -> Any:
        output, t = model(x, i)
        return diffusion.ddim_step(output, x, t, t - 1, eta, noise(i) if eta > 0 else None)

    return loop(step, _steps(diffusion), x_T)


def dpmpp_2m(model: Model, x_T: Any, diffusion: GaussianDiffusion, eta: float, noise: Noise, loop: Loop) -> Any:  # noqa: N803
    """DPM-Solver++(2M) (Lu et al. 2022b), deterministic."""

    def step(state: tuple[Any, Any], i: Any) -> tuple[Any, Any]:
        x, x_0_before = state
        output, t = model(x, i)
        return diffusion.dpmpp_2m_step(output, x, t, x_0_before)

    return loop(step, _steps(diffusion), (x_T, array_namespace(x_T).zeros_like(x_T)))[0]


def euler(model: Model, x_T: Any, diffusion: GaussianDiffusion, eta: float, noise: Noise, loop: Loop) -> Any:  # noqa: N803
    """Steps along the velocity of the path, deterministic; with the schedule `flow` those of DDIM."""
    return loop(lambda x, i: _euler_step(model, x, i, diffusion), _steps(diffusion), x_T)


def heun(model: Model, x_T: Any, diffusion: GaussianDiffusion, eta: float, noise: Noise, loop: Loop) -> Any:  # noqa: N803
    """Heun's method, deterministic and of second order, by two model outputs a step.

    The mean of the velocities at both ends of a step; the last one, to the clean image, is Euler's (Karras et al. 2022,
    algorithm 1, along the path's own velocity).
    """

    def step(x: Any, i: Any) -> Any:
        output, t = model(x, i)
        velocity = diffusion.velocity(output, x, t)
        x_prev = diffusion.euler_step(velocity, x, t)
        output, t_prev = model(x_prev, i - 1)
        return diffusion.euler_step((velocity + diffusion.velocity(output, x_prev, t_prev)) / 2, x, t)

    *steps, last = _steps(diffusion)
    x = loop(step, steps, x_T) if steps else x_T
    return _euler_step(model, x, last, diffusion)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "euler": euler, "heun": heun}


def _euler_step(model: Model, x: Any, i: Any, diffusion: GaussianDiffusion) -> Any:
    output, t = model(x, i)
    return diffusion.euler_step(diffusion.velocity(output, x, t), x, t)


def _steps(diffusion: GaussianDiffusion) -> Sequence[int]:
    return range(diffusion.num_steps)[::-1]


def sample(
    denoise: Callable[[Any, Any, Any], Any],
    x_T: Float[Any, "b c h w"],  # noqa: N803 - the papers' name
    diffusion: GaussianDiffusion,
    sampler: SamplerName = "ddim",
    eta: float = 0.0,
    noise: Noise | None = None,
    loop: Loop = functools.reduce,
) -> Float[Any, "b c h w"]:
    """Images (b, c, h, w) from noise, by walking the reverse process.

    Args:
        denoise: (x_t, t, step) -> model output. t is int (b,), timesteps of the full process; `step`, an index of
            `diffusion.timesteps`, counts the steps that are taken, down to 0: what `loop` gives, as a rule an int.
        x_T: standard normal noise (b, c, h, w).
        diffusion: the process over the steps to take (`GaussianDiffusion.respaced`).
        sampler: a name of SAMPLERS, or the path of a function like those.
        eta: of DDIM, or of a custom function; 0 is deterministic.
        noise: step -> standard normal noise (b, c, h, w); `ddpm` and `ddim` with an eta above 0 need it.
        loop: what walks the steps; under jax.jit one by `lax.scan`, which compiles a step once.

    Raises:
        ConfigError: an unknown sampler, eta out of [0, 1] or above 0 for another sampler than DDIM, or no noise where
            the sampler needs it.
    """
    SamplingConfig(diffusion.num_steps, sampler, eta)  # refuses what cannot be
    walk = choose(sampler, SAMPLERS)

    def refuse(step: Any) -> Any:
        raise ConfigError(f"Sampler {sampler} with eta {eta} draws noise at every step: give it `noise`.")

    xp = array_namespace(x_T)
    diffusion = diffusion.on(x_T)

    def model(x: Any, step: Any) -> tuple[Any, Any]:
        t = xp.full((x.shape[0],), step, device=device(x))
        return denoise(x, xp.take(diffusion.timesteps, t, axis=0), step), t

    return walk(model, x_T, diffusion, eta, noise or refuse, loop)
