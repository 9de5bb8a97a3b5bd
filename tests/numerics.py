"""How far apart two right answers can be: bounds from the arithmetic that is compared, not from one processor.

Instruction sets, threads and the shape of a batch decide in which order a sum is taken, and whether a product is
rounded before it is added. Every addition rounds by up to eps / 2 of what it has, up as often as down: a value that
`depth` additions led to is off by about eps / 2 * sqrt(depth) of its size (Higham and Mary 2019, "A new approach to
probabilistic rounding error analysis"), and two of them differ by less than `SIGMAS` times as much again. What follows
can magnify that, by the `gain`.

A bound is right if it is above what rounding does on any processor, and far below what a mistake does.
"""

from __future__ import annotations

import math

import numpy as np

from lightning_vfs.core import DiffusionConfig, make_betas

SIGMAS = 6
"""Of a normal distribution, which a sum of roundings is near to: exceeded by one of 500 million values."""

NETWORK = 600
"""Additions on the way through a tiny encoder and denoiser: some 15 sums of 16 to 72 terms, one after the other."""

JAX_REFERENCE = {"atol": 2e-5, "rtol": 0.0}
"""What is asked between the frameworks of a pass through the networks; `rounding(NETWORK)` is 1.8e-5."""


def rounding(depth: int = 1, scale: float = 1.0, gain: float = 1.0, dtype: type = np.float32) -> dict[str, float]:
    """`atol` and `rtol` for two results that differ by rounding alone.

    Args:
        depth: additions that a value is the result of.
        scale: size of the values that are added.
        gain: how many times an error is magnified by what follows the sums.
        dtype: in which they are computed.
    """
    return {"atol": SIGMAS * float(np.finfo(dtype).eps) * math.sqrt(depth) * scale * gain, "rtol": 0.0}


def relative(depth: int = 1, gain: float = 1.0, dtype: type = np.float32) -> float:
    """The same in proportion to the value, as `rel` of `pytest.approx`: for sums whose terms have one sign."""
    return rounding(depth, gain=gain, dtype=dtype)["atol"]


def sampling_gain(diffusion: DiffusionConfig, guidance_scale: float = 1.0) -> float:
    """How many times an error of the network's output is magnified in an image.

    A predicted eps is divided by sqrt(alpha_bar) on the way to x_0: at the last timestep, where sampling begins, by
    next to nothing. Clipping hides that from most pixels, not from all. x_0 itself, and v, are magnified by 1 at most.
    Guidance extrapolates from two outputs.
    """
    of_x_0 = 1.0
    if diffusion.prediction == "eps":
        of_x_0 = float(1 / np.sqrt(np.prod(1 - make_betas(diffusion.schedule, diffusion.timesteps))))
    return of_x_0 * (abs(guidance_scale) + abs(guidance_scale - 1))
