"""Noise schedules, the paths from images to noise that they make, and subsets of their steps."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lightning_vfs.core.errors import ConfigError

MAX_COSINE_BETA = 0.999


class Path(NamedTuple):
    """A path from images to noise, x_t = signal_t x_0 + noise_t eps, and its velocity; each float64 (timesteps,).

    The velocity, v = velocity_noise_t eps - velocity_image_t x_0, is the derivative of x_t by `time`, which is 0 at the
    image. So x_0 = velocity_noise_t x_t - noise_t v.
    """

    signal: np.ndarray
    noise: np.ndarray
    time: np.ndarray
    velocity_noise: np.ndarray
    velocity_image: np.ndarray


def make_path(schedule: str, timesteps: int) -> Path:
    """The path of a schedule.

    `linear`, `cosine`: signal is the square root of the cumulative product of 1 - beta, and signal**2 + noise**2 = 1:
    time is an angle, whose cosine and sine these are (Salimans and Ho 2022, appendix D).
    `flow`: straight paths, noise_t = time_t = (t + 1) / T and signal_t = 1 - noise_t, with the velocity eps - x_0
    (Lipman et al. 2023, section 4.1; Liu et al. 2023).

    Raises:
        ConfigError: as in `make_betas`.
    """
    if schedule == "flow":
        time, ones = np.arange(1, timesteps + 1) / timesteps, np.ones(timesteps)
        return Path(1 - time, time, time, ones, ones)
    alpha_bar = np.cumprod(1 - make_betas(schedule, timesteps))
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    return Path(signal, noise, np.arctan2(noise, signal), signal, noise)


def make_betas(schedule: str, timesteps: int) -> np.ndarray:
    """Betas of a diffusion process.

    `linear`: from 1e-4 to 0.02 at T = 1000, scaled by 1000 / T (Ho et al. 2020, section 4).
    `cosine`: from the cumulative product cos^2((t / T + 0.008) / 1.008 * pi / 2) (Nichol and Dhariwal 2021, eq. 17),
    clipped at 0.999.

    Returns:
        float64 array (timesteps,), each in (0, 1).

    Raises:
        ConfigError: the schedule is unknown, or has a beta of 1 or above; the message gives the smallest T that works.
    """
    if schedule == "linear":
        scale = 1000 / timesteps
        betas = np.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=np.float64)
        # At a beta of 1 nothing of the image is left, and the noise says nothing about it: a division by zero.
        if betas[-1] >= 1 or betas[0] >= 1:
            raise ConfigError(
                f"A linear schedule of {timesteps} timesteps has a beta of {max(betas[0], betas[-1]):.4g}, not below "
                "1: take at least 21 timesteps (sampling may use fewer steps of them), or the cosine schedule."
            )
        return betas
    if schedule == "cosine":
        steps = np.arange(timesteps + 1, dtype=np.float64) / timesteps
        alpha_bar = np.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_COSINE_BETA)
    raise ConfigError(f"Schedule {schedule!r} has no betas; those that have: 'linear', 'cosine'.")


@lru_cache(maxsize=64)
def space_timesteps(timesteps: int, steps: int) -> tuple[int, ...]:
    """Evenly spaced subset of the timesteps 0 to T - 1 that holds the first and the last, ascending.

    The spacing is that of improved DDPM (Nichol and Dhariwal 2021, section 4): real strides, rounded.

    Raises:
        ConfigError: steps below 1 or above `timesteps`.
    """
    if not 1 <= steps <= timesteps:
        raise ConfigError(f"{steps} sampling steps of a process of {timesteps}: take 1 to {timesteps}.")
    if steps == 1:
        return (timesteps - 1,)
    stride = (timesteps - 1) / (steps - 1)
    return tuple(round(i * stride) for i in range(steps))
