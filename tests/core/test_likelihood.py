"""Bits per dimension against closed forms, and against the loop of guided-diffusion written down in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

from lightning_vfs.core import DiffusionConfig, GaussianDiffusion, make_betas
from lightning_vfs.core.likelihood import BitsPerDim, bits_per_dim, prior_bits_per_dim
from tests.numerics import rounding

pytestmark = pytest.mark.numeric

RNG = np.random.default_rng(0)
# 8-bit images, black and white pixels among them
X_0 = (np.clip(RNG.integers(-40, 296, (3, 2, 4, 4)), 0, 255) / 127.5 - 1).astype(np.float32)
KEPT = tuple(range(49, 1000, 50))
NOISES = RNG.normal(size=(len(KEPT), *X_0.shape)).astype(np.float32)


def linear(kept: tuple[int, ...] = KEPT, **values: Any) -> GaussianDiffusion:
    return GaussianDiffusion(DiffusionConfig(1000, "linear", **values), kept)


def alpha_bar_of(kept: tuple[int, ...] = KEPT) -> np.ndarray:
    return np.cumprod(1 - make_betas("linear", 1000))[list(kept)]


def images_mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=(1, 2, 3))


def close(actual: Any, expected: Any, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, atol=atol, rtol=rtol)


# -- closed forms ----------------------------------------------------------------------------------------------------


def test_the_prior_term_is_the_kl_of_two_gaussians(array) -> None:
    kept = (0, 100, 300)  # a process that stops where a third of the image is left
    signal = alpha_bar_of(kept)[-1]
    expected = images_mean(0.5 * (signal * X_0**2 - signal - np.log(1 - signal))) / math.log(2)
    assert expected.min() > 0.01
    close(prior_bits_per_dim(linear(kept), array(X_0)), expected, 1e-6)


def test_a_perfect_denoiser_leaves_the_prior_and_the_decoder(array) -> None:
    kept = (0, 1, 2, 400, 999)
    diffusion = linear(kept, prediction="x_0", variance="fixed_small")
    bound = bits_per_dim(lambda x_t, t: array(X_0), array(X_0), diffusion, lambda step: array(NOISES[step]))
    for zero in (bound.terms[:, 1:], bound.xstart_mse, bound.eps_mse):
        close(zero, np.zeros(zero.shape), 1e-6)
    # The decoder: x_0 under N(x_0, that of the second step), cut into bins that are open at black and white.
    a, b = alpha_bar_of(kept)[:2]
    deviation = math.sqrt((1 - a) * (1 - b / a) / (1 - b))
    tail = 0.5 * math.erfc(1 / 255 / deviation / math.sqrt(2))
    decoder = -images_mean(np.log2(np.where(np.abs(X_0) == 1, 1 - tail, 1 - 2 * tail)))
    close(bound.terms[:, 0], decoder, 1e-3)  # the tanh approximation of the normal distribution function
    close(bound.total, np.asarray(bound.prior) + np.asarray(bound.terms)[:, 0], 1e-6)


def test_gaussian_data_with_its_optimal_denoiser_has_the_terms_of_the_closed_form() -> None:
    """Data N(0, s^2) with E[x_0 | x_t]: every term by the signal-to-noise ratios (Kingma et al. 2021, section 4)."""
    s = 0.2
    alpha_bar = alpha_bar_of()
    snr = alpha_bar / (1 - alpha_bar)
    mse = s**2 * (1 - alpha_bar) / (alpha_bar * s**2 + 1 - alpha_bar)
    terms = 0.5 * (np.append(0, snr[:-1]) - snr) * mse / math.log(2)
    # The decoder's bins are narrow (an eighth of the deviation at most): width 2 / 255 times the density.
    decoder_variance = (1 - alpha_bar[0]) * (1 - alpha_bar[1] / alpha_bar[0]) / (1 - alpha_bar[1])
    assert math.sqrt(decoder_variance) / 8 > 2 / 255
    terms[0] = math.log2(255 / 2 * math.sqrt(2 * math.pi * decoder_variance)) + mse[0] / decoder_variance / math.log(4)
    prior = 0.5 * (alpha_bar[-1] * s**2 - alpha_bar[-1] - np.log(1 - alpha_bar[-1])) / math.log(2)
    full = dict(zip(KEPT, alpha_bar, strict=True))

    def denoise(x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
        a = full[int(t[0])]
        return math.sqrt(a) * s**2 / (a * s**2 + 1 - a) * x_t

    rng = np.random.default_rng(1)
    shape = (100, 1, 32, 32)
    x_0 = s * rng.normal(size=shape)
    diffusion = linear(prediction="x_0", variance="fixed_small", clip_denoised=False)
    bound = bits_per_dim(denoise, x_0, diffusion, lambda step: rng.normal(size=shape))
    # A mean square over 100 000 pixels has a sampling error of 0.45 %.
    for estimate, expected in ((bound.terms[:, 1:], terms[1:]), (bound.xstart_mse, mse), (bound.eps_mse, snr * mse)):
        close(estimate.mean(axis=0), expected, 0, 0.02)
    assert bound.terms[:, 0].mean() == pytest.approx(terms[0], rel=0.005)
    assert bound.prior.mean() == pytest.approx(prior, abs=1e-6)
    assert bound.total.mean() == pytest.approx(prior + terms.sum(), rel=0.005)


# -- guided-diffusion ------------------------------------------------------------------------------------------------


def denoise(x: Any, t: Any, channels: int) -> Any:
    """A toy denoiser that depends on pixels, channels and timestep, and is now and then beyond [-1, 1]."""
    xp = array_namespace(x)
    time = xp.reshape(xp.astype(t, x.dtype), (-1, 1, 1, 1)) / 1000
    return xp.concat([xp.sin((2 + c) * x[:, c % 2 : c % 2 + 1] + time) for c in range(channels)], axis=1)


def calc_bpd_loop(images: np.ndarray, kept: tuple[int, ...], variance: str, clip: bool) -> BitsPerDim:
    """What guided-diffusion does for a model that predicts the noise, in float64."""
    x_0, alphas_cumprod = images.astype(np.float64), alpha_bar_of(kept)
    previous = np.append(1.0, alphas_cumprod[:-1])
    betas = 1 - alphas_cumprod / previous
    posterior_variance = betas * (1 - previous) / (1 - alphas_cumprod)
    posterior_log_variance_clipped = np.log(np.append(posterior_variance[1], posterior_variance[1:]))

    def posterior_mean(x_start: np.ndarray, x_t: np.ndarray, t: int) -> np.ndarray:
        coef1 = betas[t] * np.sqrt(previous[t]) / (1 - alphas_cumprod[t])
        coef2 = (1 - previous[t]) * np.sqrt(1 - betas[t]) / (1 - alphas_cumprod[t])
        return coef1 * x_start + coef2 * x_t

    def normal_kl(mean1: Any, logvar1: Any, mean2: Any, logvar2: Any) -> np.ndarray:
        return 0.5 * (-1 + logvar2 - logvar1 + np.exp(logvar1 - logvar2) + (mean1 - mean2) ** 2 * np.exp(-logvar2))

    def cdf(x: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def decoder_log_likelihood(x: np.ndarray, means: np.ndarray, log_scales: np.ndarray) -> np.ndarray:
        inv_stdv = np.exp(-log_scales)
        cdf_plus, cdf_min = cdf(inv_stdv * (x - means + 1 / 255)), cdf(inv_stdv * (x - means - 1 / 255))
        log_cdf_plus, log_one_minus_cdf_min = (
            np.log(np.maximum(cdf_plus, 1e-12)),
            np.log(np.maximum(1 - cdf_min, 1e-12)),
        )
        middle = np.log(np.maximum(cdf_plus - cdf_min, 1e-12))
        return np.where(x < -0.999, log_cdf_plus, np.where(x > 0.999, log_one_minus_cdf_min, middle))

    vb, xstart_mse, mse = [], [], []
    for t in range(len(kept)):
        noise = NOISES[t].astype(np.float64)
        a = alphas_cumprod[t]
        x_t = np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise
        output = denoise(x_t, np.full(len(x_0), kept[t]), 4 if variance == "learned_range" else 2)
        eps, values = output[:, :2], output[:, 2:]
        pred_xstart = np.sqrt(1 / a) * x_t - np.sqrt(1 / a - 1) * eps
        if clip:
            pred_xstart = np.clip(pred_xstart, -1, 1)
        true_log_variance = posterior_log_variance_clipped[t]
        if variance == "learned_range":
            fraction = (values + 1) / 2
            log_variance = fraction * np.log(betas[t]) + (1 - fraction) * true_log_variance
        elif variance == "fixed_large":
            log_variance = np.full_like(x_0, np.log(np.append(posterior_variance[1], betas[1:])[t]))
        else:
            log_variance = np.full_like(x_0, true_log_variance)
        mean = posterior_mean(pred_xstart, x_t, t)
        kl = normal_kl(posterior_mean(x_0, x_t, t), true_log_variance, mean, log_variance)
        nll = -decoder_log_likelihood(x_0, mean, 0.5 * log_variance)
        vb.append(images_mean(nll if t == 0 else kl) / np.log(2))
        xstart_mse.append(images_mean((pred_xstart - x_0) ** 2))
        eps_again = (np.sqrt(1 / a) * x_t - pred_xstart) / np.sqrt(1 / a - 1)
        mse.append(images_mean((eps_again - noise) ** 2))
    a = alphas_cumprod[-1]
    prior = images_mean(normal_kl(np.sqrt(a) * x_0, np.log(1 - a), 0.0, 0.0)) / np.log(2)
    terms = np.stack(vb, axis=1)
    return BitsPerDim(terms.sum(axis=1) + prior, prior, terms, np.stack(xstart_mse, axis=1), np.stack(mse, axis=1))


def toy_bound(diffusion: GaussianDiffusion, x_0: Any, noise: Any) -> BitsPerDim:
    channels = 4 if diffusion.config.variance == "learned_range" else 2
    return bits_per_dim(lambda x, t: denoise(x, t, channels), x_0, diffusion, noise)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["learned_range", "fixed_large", "fixed_small"])
def test_it_is_the_loop_of_guided_diffusion(variance: Any, clip: bool) -> None:
    x_0 = X_0.astype(np.float64)
    bound = toy_bound(linear(variance=variance, clip_denoised=clip), x_0, NOISES.astype(np.float64).__getitem__)
    for actual, expected in zip(bound, calc_bpd_loop(x_0, KEPT, variance, clip), strict=True):
        close(actual, expected, 1e-9, 1e-9)


def test_every_array_library_gives_the_same(array) -> None:
    asked = []

    def noise(step: int) -> Any:
        asked.append(step)
        return array(NOISES[step])

    bound = toy_bound(linear(variance="learned_range"), array(X_0), noise)
    assert sorted(asked) == list(range(len(KEPT)))
    # The terms are squares over a variance, (1 - alpha_bar) at its smallest, and the total is the sum of all steps'.
    expected = calc_bpd_loop(X_0, KEPT, "learned_range", True)
    scale = max(float(np.abs(value).max()) for value in expected)
    tolerances = rounding(8 * len(KEPT), scale, gain=2 / np.sqrt(1 - alpha_bar_of()[0]))
    for actual, value in zip(bound, expected, strict=True):
        assert type(actual) is type(array(X_0)) and np.asarray(actual).dtype == np.float32
        close(actual, value, **tolerances)


def test_the_bound_of_a_respaced_process_is_that_of_its_own_steps() -> None:
    respaced = linear(tuple(range(1000)), variance="learned_range").respaced(7)
    kept = (0, 166, 333, 500, 666, 832, 999)
    assert tuple(respaced.timesteps) == kept
    x_0 = X_0.astype(np.float64)
    bound = toy_bound(respaced, x_0, NOISES.astype(np.float64).__getitem__)
    for actual, expected in zip(bound, calc_bpd_loop(x_0, kept, "learned_range", True), strict=True):
        assert actual.shape == expected.shape
        close(actual, expected, 1e-9, 1e-9)
