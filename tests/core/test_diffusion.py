"""The diffusion process and its samplers, against closed forms, on every array library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lightning_vfs.core import (
    ConfigError,
    DiffusionConfig,
    GaussianDiffusion,
    gaussian_kl,
    make_betas,
    sample,
    standard_gaussian_kl_bits,
)
from tests.numerics import rounding

pytestmark = pytest.mark.numeric

RNG = np.random.default_rng(0)
X_0 = RNG.uniform(-1, 1, (5, 2, 4, 4)).astype(np.float32)
NOISE = RNG.normal(size=X_0.shape).astype(np.float32)
T = np.array([0, 1, 20, 48, 49])
ALPHA_BAR = np.cumprod(1 - make_betas("cosine", 50))[T][:, None, None, None]


def diffusion_of(**values: Any) -> GaussianDiffusion:
    return GaussianDiffusion(DiffusionConfig(**{"timesteps": 50, **values}))


def close(actual: Any, expected: Any, atol: float = 2e-6) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, atol=atol, rtol=1e-5)


def test_q_sample_is_the_closed_form(array) -> None:
    x_t = diffusion_of().q_sample(array(X_0), array(T), array(NOISE))
    close(x_t, np.sqrt(ALPHA_BAR) * X_0 + np.sqrt(1 - ALPHA_BAR) * NOISE)


def test_posterior_is_bayes_rule(array) -> None:
    diffusion = diffusion_of()
    x_t = RNG.normal(size=X_0.shape).astype(np.float32)
    mean, log_variance = diffusion.q_posterior(array(X_0), array(x_t), array(T))
    previous = np.append(1.0, np.cumprod(1 - make_betas("cosine", 50)))[T][:, None, None, None]
    beta = 1 - ALPHA_BAR / previous
    for i in range(1, 5):
        # q(x_{t-1} | x_0) times q(x_t | x_{t-1}), both normal: precisions add
        precision = 1 / (1 - previous[i]) + (1 - beta[i]) / beta[i]
        expected = (np.sqrt(previous[i]) * X_0[i] / (1 - previous[i]) + np.sqrt(1 - beta[i]) * x_t[i] / beta[i]) / (
            precision
        )
        close(mean[i], expected, 1e-5)
        close(log_variance[i], -np.log(precision), 1e-5)
    close(mean[0], X_0[0])


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_a_perfect_prediction_gives_x_0_back(array, prediction: str) -> None:
    diffusion = diffusion_of(prediction=prediction)
    x_0, t, noise = array(X_0), array(T), array(NOISE)
    x_t = diffusion.q_sample(x_0, t, noise)
    # At the last step alpha_bar is 2e-6, so that an eps of float32 carries no image.
    bound = rounding(8, gain=1 / np.sqrt(ALPHA_BAR[:4].min()))["atol"]
    close(diffusion.predict_x_0(diffusion.target(x_0, t, noise), x_t, t)[:4], X_0[:4], bound)


def test_v_is_its_definition(array) -> None:
    target = diffusion_of(prediction="v").target(array(X_0), array(T), array(NOISE))
    close(target, np.sqrt(ALPHA_BAR) * NOISE - np.sqrt(1 - ALPHA_BAR) * X_0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_variances(array, variance: str) -> None:
    diffusion = diffusion_of(variance=variance, prediction="x_0")
    betas = make_betas("cosine", 50)
    previous = np.append(1.0, np.cumprod(1 - betas))[:-1]
    posterior = betas * (1 - previous) / (1 - np.cumprod(1 - betas))
    posterior[0] = posterior[1]
    fraction = np.full_like(X_0, 0.5)
    output = np.concatenate([X_0, fraction], axis=1) if variance == "learned_range" else X_0
    log_variance = diffusion.p_mean_variance(array(output), array(NOISE), array(T)).log_variance
    expected = {
        "fixed_small": np.log(posterior),
        "fixed_large": np.log(np.append(posterior[1], betas[1:])),
        "learned_range": 0.75 * np.log(betas) + 0.25 * np.log(posterior),
    }[variance]
    close(log_variance, np.broadcast_to(expected[T][:, None, None, None], X_0.shape), 1e-5)


def test_a_denoiser_of_wrong_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gave 2 channels for images of 2; variance `learned_range` needs 4"):
        diffusion_of(variance="learned_range").p_mean_variance(X_0, NOISE, T)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_with_a_perfect_denoiser_samplers_end_at_the_image(array, sampler: str, steps: int) -> None:
    diffusion = diffusion_of(prediction="x_0").respaced(steps)
    seen = []

    def denoise(x: Any, t: Any, step: Any) -> Any:
        assert t.shape == (len(X_0),)
        seen.append((step, int(t[0])))
        return array(X_0)

    close(sample(denoise, array(NOISE), diffusion, sampler, noise=lambda step: array(NOISE)), X_0)
    assert seen == list(enumerate(diffusion.timesteps))[::-1]
    assert len(seen) == steps


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0), ("dpmpp_2m", 0.0)])
def test_samplers_draw_from_a_normal_distribution_with_its_optimal_denoiser(sampler: str, eta: float) -> None:
    """Data N(0.3, 0.2^2): E[x_0 | x_t] is known, so the samples' mean and deviation are too."""
    mean, deviation = 0.3, 0.2
    diffusion = GaussianDiffusion(DiffusionConfig(timesteps=1000, prediction="x_0", clip_denoised=False)).respaced(200)
    alpha_bar = np.cumprod(1 - make_betas("cosine", 1000))
    rng = np.random.default_rng(0)

    def denoise(x: np.ndarray, t: np.ndarray, step: int) -> np.ndarray:
        a = alpha_bar[t][:, None, None, None]
        gain = np.sqrt(a) * deviation**2 / (a * deviation**2 + 1 - a)
        return mean + gain * (x - np.sqrt(a) * mean)

    shape = (400, 1, 8, 8)
    images = sample(denoise, rng.normal(size=shape), diffusion, sampler, eta, lambda step: rng.normal(size=shape))
    assert images.mean() == pytest.approx(mean, abs=0.01)
    assert images.std() == pytest.approx(deviation, rel=0.05)


def test_ddim_needs_noise_for_eta_and_a_known_sampler() -> None:
    with pytest.raises(ValueError, match=r"eta 0.5 adds noise"):
        diffusion_of().ddim_step(X_0, NOISE, T, T - 1, eta=0.5)
    with pytest.raises(ConfigError, match="sampler is 'plms'; allowed: 'ddpm', 'ddim', 'dpmpp_2m', 'euler', 'heun'"):
        sample(lambda x, t, step: x, NOISE, diffusion_of(), "plms")
    with pytest.raises(ConfigError, match="eta is 2"):
        sample(lambda x, t, step: x, NOISE, diffusion_of(), "ddim", eta=2)
    for sampler in ("ddpm", "dpmpp_2m"):
        with pytest.raises(ConfigError, match="eta is 0.5, but it is DDIM's"):
            sample(lambda x, t, step: x, NOISE, diffusion_of(), sampler, 0.5, lambda step: NOISE)
    for sampler, eta in (("ddpm", 0.0), ("ddim", 0.5)):
        with pytest.raises(ConfigError, match="draws noise at every step"):
            sample(lambda x, t, step: x, NOISE, diffusion_of(), sampler, eta)


def test_losses_are_the_squared_error_and_the_variational_bound_without_gradient_to_the_mean() -> None:
    torch = pytest.importorskip("torch")
    x_0, t, noise = torch.as_tensor(X_0), torch.as_tensor(T), torch.as_tensor(NOISE)
    output = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mse = ((noise - output[:, :2]) ** 2).mean(dim=(1, 2, 3))
    (of_mse,) = torch.autograd.grad(mse.sum(), output, retain_graph=True)
    for loss, squared, weight in (("rescaled_mse", 1, 50 / 1000), ("mse", 1, 1), ("kl", 0, 1), ("rescaled_kl", 0, 50)):
        diffusion = diffusion_of(variance="learned_range", loss=loss)
        x_t = diffusion.q_sample(x_0, t, noise)
        losses = diffusion.training_losses(output, x_0, x_t, t, noise, torch.Tensor.detach)
        bound = diffusion.variational_bound(output, x_0, x_t, t, clip=False)
        torch.testing.assert_close(losses, squared * mse + weight * bound)
        (gradient,) = torch.autograd.grad(losses.sum(), output, retain_graph=True)
        assert gradient[:, 2:].abs().max() > 0
        if squared:
            torch.testing.assert_close(gradient[:, :2], of_mse[:, :2])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_losses_with_learned_variance_are_their_closed_forms(array, schedule: str) -> None:
    """Everything from alpha_bar alone, in float64 (Ho et al. 2020, eq. 5 to 7; Nichol and Dhariwal 2021, eq. 15)."""
    t, rng = np.array([0, 1, 2, 20, 45]), np.random.default_rng(1)
    x_0 = np.round(X_0.astype(np.float64) * 120) / 127.5  # 8-bit images, neither black nor white
    output = np.concatenate([NOISE + 0.5 * rng.normal(size=NOISE.shape), rng.uniform(-1, 1, NOISE.shape)], axis=1)
    every = np.append(1.0, np.cumprod(1 - make_betas(schedule, 50)))
    a, before = (every[i][:, None, None, None] for i in (t + 1, t))
    beta = 1 - a / before
    posterior_variance = beta * (1 - before) / (1 - a)
    posterior_variance[0] = posterior_variance[1]
    x_t = np.sqrt(a) * x_0 + np.sqrt(1 - a) * NOISE
    eps, fraction = output[:, :2], (output[:, 2:] + 1) / 2
    predicted = (x_t - np.sqrt(1 - a) * eps) / np.sqrt(a)
    variance = beta**fraction * posterior_variance ** (1 - fraction)
    mean, true_mean = (
        (np.sqrt(before) * beta * x + np.sqrt(1 - beta) * (1 - before) * x_t) / (1 - a) for x in (predicted, x_0)
    )
    kl = 0.5 * (np.log(variance / posterior_variance) + (posterior_variance + (mean - true_mean) ** 2) / variance - 1)
    cdf = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))
    lower, upper = ((x_0[0] - mean[0] + side / 255) / np.sqrt(variance[0]) for side in (-1, 1))
    kl[0] = -np.log(cdf(upper) - cdf(lower))
    bound = kl.mean(axis=(1, 2, 3)) / math.log(2)
    mse = ((eps - NOISE) ** 2).mean(axis=(1, 2, 3))
    assert bound.min() > 1e-3
    for loss, expected in {
        "mse": mse + bound,
        "rescaled_mse": mse + 50 / 1000 * bound,
        "kl": bound,
        "rescaled_kl": 50 * bound,
    }.items():
        diffusion = diffusion_of(schedule=schedule, variance="learned_range", loss=loss)
        arrays = (array(x.astype(np.float32)) for x in (output, x_0, x_t))
        losses = diffusion.training_losses(*arrays, array(t), array(NOISE), lambda x: x)
        np.testing.assert_allclose(np.asarray(losses)[1:], expected[1:], rtol=1e-3)
        # Ours approximates the decoder's distribution function by tanh.
        np.testing.assert_allclose(np.asarray(losses)[0], expected[0], rtol=0.01)


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_min_snr_weighs_the_squared_error_alone(array, prediction: str, variance: str) -> None:
    channels = 4 if variance == "learned_range" else 2
    output = np.random.default_rng(1).normal(size=(5, channels, 4, 4)).astype(np.float32)
    x_t = diffusion_of().q_sample(X_0, T, NOISE)

    def losses(prediction: str, **values: Any) -> np.ndarray:
        diffusion = diffusion_of(prediction=prediction, variance=variance, **values)
        arrays = map(array, (output, X_0, x_t, T, NOISE))
        return np.asarray(diffusion.training_losses(*arrays, lambda x: x)).astype(np.float64)

    squared = (diffusion_of(prediction=prediction).target(X_0, T, NOISE) - output[:, :2]) ** 2
    squared = squared.astype(np.float64).mean(axis=(1, 2, 3))
    snr = (ALPHA_BAR / (1 - ALPHA_BAR)).ravel()
    assert snr[0] > 5 > snr[2] > 0.1  # both sides of the cut
    clipped = np.minimum(snr, 5.0)
    weight = {"eps": clipped / snr, "x_0": clipped, "v": clipped / (snr + 1)}[prediction]
    # What is added to the squared error stays: with plain losses it is known up to the bound's rounding.
    bound = losses(prediction) - squared
    weighted = losses(prediction, min_snr_gamma=5.0)
    np.testing.assert_allclose(weighted, weight * squared + bound, rtol=1e-4, atol=1e-5)
    assert np.abs(weight - 1).max() > 0.1


def test_min_snr_of_a_respaced_process_goes_by_its_own_steps() -> None:
    respaced = diffusion_of(prediction="x_0", min_snr_gamma=5.0).respaced(3)
    step = np.array([1])
    (loss,) = respaced.training_losses(X_0[:1] + 1, X_0[:1], X_0[:1], step, NOISE[:1], lambda x: x)
    (full,) = diffusion_of(prediction="x_0", min_snr_gamma=5.0).training_losses(
        X_0[:1] + 1, X_0[:1], X_0[:1], np.array([respaced.timesteps[1]]), NOISE[:1], lambda x: x
    )
    assert loss == pytest.approx(full) and loss < 5


def test_clipping_is_asked_for_or_left_to_the_configuration() -> None:
    far, t = np.full_like(X_0, 5.0), T
    for configured in (True, False):
        diffusion = diffusion_of(prediction="x_0", clip_denoised=configured)
        assert diffusion.predict_x_0(far, NOISE, t).max() == (1 if configured else 5)
        assert diffusion.p_mean_variance(far, NOISE, t, clip=True).pred_x_0.max() == 1
        assert diffusion.p_mean_variance(far, NOISE, t, clip=False).pred_x_0.max() == 5


def test_variational_bound_is_the_kl_of_the_two_posteriors() -> None:
    diffusion = diffusion_of(prediction="x_0")
    x_t = diffusion.q_sample(X_0, T, NOISE)
    wrong = X_0 * 0.9
    bound = diffusion.variational_bound(wrong, X_0, x_t, T)
    true_mean, log_variance = diffusion.q_posterior(X_0, x_t, T)
    mean, _ = diffusion.q_posterior(wrong, x_t, T)
    expected = ((true_mean - mean) ** 2 / (2 * np.exp(log_variance))).mean(axis=(1, 2, 3)) / math.log(2)
    close(bound[1:], expected[1:], 1e-6)
    assert 0 < bound[0] < 20


def test_kl_of_gaussians(array) -> None:
    zero, one = array(np.zeros((2, 3), np.float32)), array(np.ones((2, 3), np.float32))
    close(gaussian_kl(one, zero, zero, zero), np.full((2, 3), 0.5))
    close(gaussian_kl(zero, one, zero, zero), np.full((2, 3), (math.e - 2) / 2))
    close(standard_gaussian_kl_bits(one, zero), np.full(2, 0.5 / math.log(2)))


def test_tables_keep_float64_and_results_the_images_type(array) -> None:
    diffusion = diffusion_of()
    x_t = diffusion.q_sample(array(X_0), array(T), array(NOISE))
    assert np.asarray(x_t).dtype == np.float32
    moved = diffusion.on(array(X_0))
    assert np.array_equal(np.asarray(moved.q_sample(array(X_0), array(T), array(NOISE))), np.asarray(x_t))
    assert moved.on(array(X_0)) is moved


def test_placed_tables_are_float32_until_images_are_float64() -> None:
    diffusion = diffusion_of()
    placed = diffusion.on(X_0)
    assert {table.dtype for table in placed._tables.values()} == {np.dtype(np.float32), np.dtype(np.int64)}
    again = placed.on(X_0.astype(np.float64))
    for name, table in diffusion._host_tables.items():
        assert np.array_equal(again._tables[name], table)
        assert np.array_equal(
            placed._tables[name], table.astype(np.float32 if table.dtype == np.float64 else table.dtype)
        )
