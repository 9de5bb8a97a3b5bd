"""Bits per dimension of images: the variational bound of their negative log-likelihood, term by term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device
from jaxtyping import Float

from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.gaussian import mean_flat, standard_gaussian_kl_bits


class BitsPerDim(NamedTuple):
    """The bound of every image and what it is made of, in bits per dimension; the errors are of x_0 and of the noise.

    Column t belongs to step t of the process, from the decoder (t = 0) to the last step; a row to an image.
    """

    total: Float[Any, " b"]
    """(b,): `prior` plus the sum of `terms`."""
    prior: Float[Any, " b"]
    """(b,): KL(q(x_T | x_0) || N(0, I))."""
    terms: Float[Any, "b steps"]
    """(b, T): KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and at t = 0 -log2 p(x_0 | x_1) of the 8-bit image."""
    xstart_mse: Float[Any, "b steps"]
    """(b, T): mean squared error of the predicted x_0."""
    eps_mse: Float[Any, "b steps"]
    """(b, T): mean squared error of the noise that the predicted x_0 stands for."""


def bits_per_dim(
    denoise: Callable[[Any, Any], Any],
    x_0: Float[Any, "b c h w"],
    diffusion: GaussianDiffusion,
    noise: Callable[[int], Any],
) -> BitsPerDim:
    """Variational bound of every image, in bits per dimension (Nichol and Dhariwal 2021, eq. 4 to 7).

    Every term is estimated from one draw of x_t. A respaced process gives the bound of the model that takes only
    those steps. The predicted x_0 is clipped if the configuration says so. Memory is that of one step, and O(b T).

    Args:
        denoise: (x_t, t) -> model output, t int (b,) timesteps of the full process.
        x_0: 8-bit images (b, c, h, w) scaled to [-1, 1].
        diffusion: the process; T is the number of its steps.
        noise: step -> standard normal noise (b, c, h, w), asked for once a step.

    Raises:
        ValueError: the number of channels of the model output does not fit the variance.
    """
    xp = array_namespace(x_0)
    diffusion = diffusion.on(x_0)
    terms, xstart_mse, eps_mse = [], [], []
    for step in range(diffusion.num_steps):
        t = xp.full((x_0.shape[0],), step, device=device(x_0))
        x_t = diffusion.q_sample(x_0, t, noise(step))
        model_output = denoise(x_t, xp.take(diffusion.timesteps, t, axis=0))
        terms.append(diffusion.variational_bound(model_output, x_0, x_t, t))
        error = x_0 - diffusion.p_mean_variance(model_output, x_t, t).pred_x_0
        xstart_mse.append(mean_flat(error**2))
        # x_t is given: what its image part lacks, its noise part has too much.
        mean, deviation = _mean_and_deviation(diffusion, error, t)
        eps_mse.append(mean_flat((mean / deviation) ** 2))
    prior = prior_bits_per_dim(diffusion, x_0)
    stacked = xp.stack(terms, axis=1)
    return BitsPerDim(
        prior + xp.sum(stacked, axis=1), prior, stacked, xp.stack(xstart_mse, axis=1), xp.stack(eps_mse, axis=1)
    )


def prior_bits_per_dim(diffusion: GaussianDiffusion, x_0: Float[Any, "b c h w"]) -> Float[Any, " b"]:
    """KL(q(x_T | x_0) || N(0, I)), in bits per dimension (Nichol and Dhariwal 2021, eq. 7): (b, c, h, w) -> (b,)."""
    xp = array_namespace(x_0)
    last = xp.full((x_0.shape[0],), diffusion.num_steps - 1, device=device(x_0))
    mean, deviation = _mean_and_deviation(diffusion, x_0, last)
    return standard_gaussian_kl_bits(mean, 2 * xp.log(deviation))


def _mean_and_deviation(diffusion: GaussianDiffusion, x_0: Any, t: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of q(x_t | x_0), each (b, c, h, w)."""
    xp = array_namespace(x_0)
    zeros = xp.zeros_like(x_0)
    return diffusion.q_sample(x_0, t, zeros), diffusion.q_sample(zeros, t, xp.ones_like(x_0))
