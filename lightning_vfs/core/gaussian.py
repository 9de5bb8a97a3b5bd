"""Gaussian divergences and likelihoods, in bits or nats as named."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Float


def gaussian_kl(
    mean_1: Float[Any, "*shape"],
    log_variance_1: Float[Any, "*#shape"],
    mean_2: Float[Any, "*shape"],
    log_variance_2: Float[Any, "*#shape"],
) -> Float[Any, "*shape"]:
    """KL(N(mean_1, exp(log_variance_1)) || N(mean_2, exp(log_variance_2))), elementwise, in nats."""
    xp = array_namespace(mean_1, log_variance_1)
    return 0.5 * (
        log_variance_2
        - log_variance_1
        - 1.0
        + xp.exp(log_variance_1 - log_variance_2)
        + (mean_1 - mean_2) ** 2 * xp.exp(-log_variance_2)
    )


def standard_gaussian_kl_bits(mean: Float[Any, " b *rest"], log_variance: Float[Any, " b *#rest"]) -> Float[Any, " b"]:
    """KL(N(mean, exp(log_variance)) || N(0, I)) averaged over all but the first axis, in bits: (b, ...) -> (b,)."""
    xp = array_namespace(mean)
    kl = 0.5 * (mean**2 + xp.exp(log_variance) - 1.0 - log_variance)
    return mean_flat(kl) / math.log(2)


def discretized_gaussian_log_likelihood(
    x: Float[Any, "*shape"], mean: Float[Any, "*shape"], log_scale: Float[Any, "*#shape"]
) -> Float[Any, "*shape"]:
    """Log-probability, in nats, of 8-bit images scaled to [-1, 1] under a Gaussian cut into 256 bins.

    Ho et al. 2020, eq. 13; the normal distribution function in its tanh approximation, as the reference systems use.
    """
    xp = array_namespace(x, mean)
    centered, inverse_scale = x - mean, xp.exp(-log_scale)
    upper = _normal_cdf((centered + 1 / 255) * inverse_scale, xp)
    lower = _normal_cdf((centered - 1 / 255) * inverse_scale, xp)
    tiny = 1e-12
    return xp.where(
        x < -0.999,
        xp.log(xp.clip(upper, tiny, None)),
        xp.where(x > 0.999, xp.log(xp.clip(1 - lower, tiny, None)), xp.log(xp.clip(upper - lower, tiny, None))),
    )


def mean_flat(x: Float[Any, " b *rest"]) -> Float[Any, " b"]:
    """Mean over all but the first axis: (b, ...) -> (b,)."""
    xp = array_namespace(x)
    return xp.mean(x, axis=tuple(range(1, x.ndim)))


def _normal_cdf(x: Any, xp: Any) -> Any:
    return 0.5 * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
