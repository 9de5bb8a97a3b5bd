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
    betas_for,
    gaussian_kl,
    sample,
    standard_gaussian_kl_bits,
)

RNG = np.random.default_rng(0)
X_0 = RNG.uniform(-1, 1, (5, 2, 4, 4)).astype(np.float32)
NOISE = RNG.normal(size=X_0.shape).astype(np.float32)
T = np.array([0, 1, 20, 48, 49])
ALPHA_BAR = np.cumprod(1 - betas_for("cosine", 50))[T][:, None, None, None]


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
    previous = np.append(1.0, np.cumprod(1 - betas_for("cosine", 50)))[T][:, None, None, None]
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
    close(diffusion.predict_xstart(diffusion.target(x_0, t, noise), x_t, t)[:4], X_0[:4], 2e-5)


def test_v_is_its_definition(array) -> None:
    target = diffusion_of(prediction="v").target(array(X_0), array(T), array(NOISE))
    close(target, np.sqrt(ALPHA_BAR) * NOISE - np.sqrt(1 - ALPHA_BAR) * X_0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_variances(array, variance: str) -> None:
    diffusion = diffusion_of(variance=variance, prediction="x_0")
    betas = betas_for("cosine", 50)
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


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_with_a_perfect_denoiser_samplers_end_at_the_image(array, sampler: str, steps: int) -> None:
    diffusion = diffusion_of(prediction="x_0").respaced(steps)
    seen = []

    def denoise(x: Any, t: Any) -> Any:
        seen.append(int(t[0]))
        return array(X_0)

    close(sample(denoise, array(NOISE), diffusion, sampler, noise=lambda step: array(NOISE)), X_0)
    assert seen == list(reversed(np.asarray(diffusion.timesteps)))
    assert len(seen) == steps


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
def test_samplers_draw_from_a_normal_distribution_with_its_optimal_denoiser(sampler: str, eta: float) -> None:
    """Data N(0.3, 0.2^2): E[x_0 | x_t] is known, so the samples' mean and deviation are too."""
    mean, deviation = 0.3, 0.2
    diffusion = GaussianDiffusion(DiffusionConfig(timesteps=1000, prediction="x_0", clip_denoised=False)).respaced(200)
    alpha_bar = np.cumprod(1 - betas_for("cosine", 1000))
    rng = np.random.default_rng(0)

    def denoise(x: np.ndarray, t: np.ndarray) -> np.ndarray:
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
    with pytest.raises(ConfigError, match="'euler' is unknown; allowed: ddpm, ddim"):
        sample(lambda x, t: x, NOISE, diffusion_of(), "euler")
    with pytest.raises(ConfigError, match="eta is 2"):
        sample(lambda x, t: x, NOISE, diffusion_of(), "ddim", eta=2)
    with pytest.raises(ConfigError, match="draws noise at every step"):
        sample(lambda x, t: x, NOISE, diffusion_of(), "ddpm")


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


def test_clipping_is_asked_for_or_left_to_the_configuration() -> None:
    far, t = np.full_like(X_0, 5.0), T
    for configured in (True, False):
        diffusion = diffusion_of(prediction="x_0", clip_denoised=configured)
        assert diffusion.predict_xstart(far, NOISE, t).max() == (1 if configured else 5)
        assert diffusion.p_mean_variance(far, NOISE, t, clip=True).pred_xstart.max() == 1
        assert diffusion.p_mean_variance(far, NOISE, t, clip=False).pred_xstart.max() == 5


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
    close(moved.q_sample(array(X_0), array(T), array(NOISE)), np.asarray(x_t), 0)
