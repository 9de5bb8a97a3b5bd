"""Densities of the timesteps that training draws."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from lightning_vfs.core.diffusion_config import DiffusionConfig
from lightning_vfs.core.schedules import make_path

UNIFORM_SHARE = 0.001
"""Share of all draws that is uniform, so that no timestep is left out, nor weighs more than 1 / UNIFORM_SHARE."""


def timestep_probabilities(config: DiffusionConfig) -> Float[np.ndarray, " timesteps"] | None:
    """Probability of every timestep, float64 (T,), which sum to 1; None where `timestep_sampling` has no density.

    `logit_normal`: logit(u) is normal for u in [0, 1), and t = floor(u T) (Esser et al. 2024, section 3.1).
    `log_normal`: log(noise_t / signal_t) is (Karras et al. 2022, section 5), and the nearest timestep is taken. A share
    of UNIFORM_SHARE is uniform.
    """
    if config.timestep_sampling == "logit_normal":
        edges = np.arange(1, config.timesteps) / config.timesteps
        edges = np.log(edges / (1 - edges))
    elif config.timestep_sampling == "log_normal":
        path = make_path(config.schedule, config.timesteps)
        with np.errstate(divide="ignore"):
            log_ratio = np.log(path.noise) - np.log(path.signal)
        edges = (log_ratio[1:] + log_ratio[:-1]) / 2
    else:
        return None
    z = (edges - config.timestep_mean) / config.timestep_sd
    below = np.array([0.0, *(0.5 * math.erfc(-value / math.sqrt(2)) for value in z), 1.0])
    return (1 - UNIFORM_SHARE) * np.diff(below) + UNIFORM_SHARE / config.timesteps
