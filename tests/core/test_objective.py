"""Weights of the squared error, the contrastive term, and densities of timesteps, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lightning_vfs.core import ConfigError, DiffusionConfig, GaussianDiffusion
from lightning_vfs.core.schedules import make_path
from lightning_vfs.core.timestep_density import timestep_probabilities

pytestmark = pytest.mark.numeric

RNG = np.random.default_rng(0)
X_0, NOISE, OTHER_X_0, OTHER_NOISE, ERROR = RNG.normal(size=(5, 5, 2, 4, 4)).astype(np.float32)
T = np.array([0, 1, 20, 40, 48])


def process_of(**values: Any) -> GaussianDiffusion:
    return GaussianDiffusion(DiffusionConfig(**{"timesteps": 50, "loss": "mse", **values}))


def losses_of(process: GaussianDiffusion, array: Any, output: np.ndarray, **options: Any) -> np.ndarray:
    x_t = process.q_sample(X_0, T, NOISE)
    arrays = map(array, (output.astype(np.float32), X_0, x_t, T, NOISE))
    losses = process.training_losses(*arrays, lambda x: x, **{name: array(value) for name, value in options.items()})
    return np.asarray(losses, dtype=np.float64)


def mean(squares: np.ndarray) -> np.ndarray:
    return squares.astype(np.float64).mean(axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [("cosine", "eps"), ("cosine", "x_0"), ("cosine", "v"), ("flow", "x_0"), ("flow", "v")],
)
@pytest.mark.parametrize("weighting", ["eps", "x_0", "v"])
def test_a_weighted_loss_is_the_error_of_what_it_is_named_for(
    array, schedule: str, prediction: str, weighting: str
) -> None:
    """What the prediction stands for, through the x_0 that it stands for."""
    process = process_of(schedule=schedule, prediction=prediction, weighting=weighting, weight_limit=1e9)
    path = make_path(schedule, 50)
    signal, noise, velocity_noise, velocity_image = (
        values[T][:, None, None, None] for values in (path.signal, path.noise, path.velocity_noise, path.velocity_image)
    )
    output = process.target(X_0, T, NOISE) + ERROR
    x_t = signal * X_0 + noise * NOISE
    # Solve x_t = signal x_0 + noise eps and, for v, v = velocity_noise eps - velocity_image x_0.
    x_0 = {
        "eps": (x_t - noise * output) / signal,
        "x_0": output,
        "v": (velocity_noise * x_t - noise * output) / (velocity_noise * signal + velocity_image * noise),
    }[prediction]
    eps = (x_t - signal * x_0) / noise
    stands_for = {"eps": eps, "x_0": x_0, "v": velocity_noise * eps - velocity_image * x_0}[weighting]
    true = {"eps": NOISE, "x_0": X_0, "v": velocity_noise * NOISE - velocity_image * X_0}[weighting]
    np.testing.assert_allclose(losses_of(process, array, output), mean((stands_for - true) ** 2), rtol=2e-4)


def test_weights_have_a_limit_and_leave_the_bound_alone() -> None:
    plain = process_of(prediction="x_0", variance="learned_range", loss="rescaled_mse")
    weighted = process_of(
        prediction="x_0", variance="learned_range", loss="rescaled_mse", weighting="v", weight_limit=3.0
    )
    output = np.concatenate([X_0 + ERROR, np.tanh(NOISE)], axis=1)
    squared = mean(ERROR**2)
    bound = losses_of(plain, np.asarray, output) - squared
    weight = np.minimum(1 / make_path("cosine", 50).noise[T] ** 2, 3.0)
    assert weight[0] == 3 and weight[-1] < 1.1
    np.testing.assert_allclose(losses_of(weighted, np.asarray, output), weight * squared + bound, rtol=1e-4)


@pytest.mark.parametrize("weighting", ["prediction", "v"])
def test_the_contrastive_term_is_the_error_of_another_target(array, weighting: str) -> None:
    process = process_of(schedule="flow", prediction="x_0", weighting=weighting, contrastive_weight=0.05)
    output = X_0 + ERROR
    negative = process.target(OTHER_X_0, T, OTHER_NOISE)
    weight = np.minimum(1 / ((T + 1) / 50) ** 2, 400) if weighting == "v" else 1
    expected = weight * (mean(ERROR**2) - 0.05 * mean((OTHER_X_0 - output) ** 2))
    np.testing.assert_allclose(losses_of(process, array, output, negative=negative), expected, rtol=1e-4)
    contrast = np.array([1, 0, 1, 0, 0], np.float32)
    expected = weight * (mean(ERROR**2) - contrast * 0.05 * mean((OTHER_X_0 - output) ** 2))
    found = losses_of(process, array, output, negative=negative, contrast=contrast)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # Without a negative, as in evaluation, there is none.
    np.testing.assert_allclose(losses_of(process, array, output), weight * mean(ERROR**2), rtol=1e-4)


@pytest.mark.parametrize("loss", ["rescaled_mse", "rescaled_kl"])
def test_the_bound_has_weights_of_its_own(array, loss: str) -> None:
    process = process_of(prediction="x_0", variance="learned_range", loss=loss)
    output = np.concatenate([X_0 + ERROR, np.tanh(NOISE)], axis=1)
    weight = np.array([0.5, 2, 1, 3, 0], np.float32)
    squared = mean(ERROR**2) if loss == "rescaled_mse" else 0
    bound = losses_of(process, array, output) - squared
    found = losses_of(process, array, output, bound_weight=weight)
    np.testing.assert_allclose(found, squared + weight * bound, rtol=1e-4, atol=1e-4)


def density(name: str, mean: float, sd: float, timesteps: int = 100, schedule: str = "flow") -> np.ndarray:
    config = DiffusionConfig(timesteps, schedule, "v", timestep_sampling=name, timestep_mean=mean, timestep_sd=sd)
    probabilities = timestep_probabilities(config)
    assert probabilities.sum() == pytest.approx(1)
    return probabilities


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.8, 0.8), (-1.2, 0.5)])
def test_the_logit_of_the_time_is_normal(mean: float, sd: float) -> None:
    """Against draws: the share of each tenth of the timesteps."""
    u = 1 / (1 + np.exp(-(mean + sd * np.random.default_rng(0).normal(size=400_000))))
    shares = np.histogram(u, bins=10, range=(0, 1))[0] / len(u)
    found = density("logit_normal", mean, sd).reshape(10, 10).sum(axis=1)
    np.testing.assert_allclose(found, 0.999 * shares + 0.001 / 10, atol=3e-3)


@pytest.mark.parametrize("schedule", ["flow", "cosine"])
def test_the_logarithm_of_noise_over_signal_is_normal(schedule: str) -> None:
    probabilities = density("log_normal", -0.5, 0.7, 2000, schedule)
    path = make_path(schedule, 2000)
    log_ratio = np.log(path.noise[:-1] / path.signal[:-1])
    found_mean = (probabilities[:-1] * log_ratio).sum()
    assert found_mean == pytest.approx(-0.5, abs=0.02)
    assert math.sqrt((probabilities[:-1] * (log_ratio + 0.5) ** 2).sum()) == pytest.approx(0.7, abs=0.03)


def test_without_a_density_there_are_no_probabilities() -> None:
    assert timestep_probabilities(DiffusionConfig()) is None
    assert timestep_probabilities(DiffusionConfig(timestep_sampling="loss_second_moment")) is None
    np.testing.assert_allclose(density("logit_normal", 0.0, 1.0, timesteps=1), [1.0])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"weighting": "snr"}, "weighting is 'snr'; allowed: 'prediction', 'eps', 'x_0', 'v'"),
        ({"weighting": "v", "min_snr_gamma": 5.0}, "both weight the squared error"),
        ({"weighting": "v", "loss": "kl"}, "loss 'kl' has no squared error: set it to 'prediction'"),
        ({"contrastive_weight": 0.1, "loss": "rescaled_kl"}, "contrastive_weight is 0.1, but loss 'rescaled_kl'"),
        ({"contrastive_weight": 1.0}, "contrastive_weight is 1.0; it must be at least 0 and below 1"),
        ({"weight_limit": 0.0}, "weight_limit is 0.0; it must be a finite number above 0"),
        ({"timestep_sd": 0.0}, "timestep_sd is 0.0; it must be a finite number above 0"),
        ({"timestep_mean": math.nan}, "timestep_mean is nan; it must be a finite number"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(values: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        process_of(**values)
