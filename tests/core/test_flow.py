"""Straight paths, the schedule `flow`, and the samplers along a path's velocity, against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_vfs.core import ConfigError, DiffusionConfig, GaussianDiffusion, sample
from lightning_vfs.core.schedules import make_path

pytestmark = pytest.mark.numeric

RNG = np.random.default_rng(0)
X_0 = RNG.uniform(-1, 1, (5, 2, 4, 4)).astype(np.float32)
NOISE = RNG.normal(size=X_0.shape).astype(np.float32)
T = np.array([0, 1, 20, 48, 49])
TIME = ((T + 1) / 50)[:, None, None, None]


def flow(**values: Any) -> GaussianDiffusion:
    return GaussianDiffusion(DiffusionConfig(**{"timesteps": 50, "schedule": "flow", "prediction": "v", **values}))


def close(actual: Any, expected: Any, atol: float = 2e-6) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, atol=atol, rtol=1e-5)


def test_paths_are_straight_and_end_in_noise(array) -> None:
    x_t = flow().q_sample(array(X_0), array(T), array(NOISE))
    close(x_t, (1 - TIME) * X_0 + TIME * NOISE)
    close(np.asarray(x_t)[-1], NOISE[-1])
    close(flow().target(array(X_0), array(T), array(NOISE)), NOISE - X_0)


@pytest.mark.parametrize("prediction", ["x_0", "v"])
def test_a_perfect_prediction_gives_x_0_back(array, prediction: str) -> None:
    process, x_0, t, noise = flow(prediction=prediction), array(X_0), array(T), array(NOISE)
    close(process.predict_x_0(process.target(x_0, t, noise), process.q_sample(x_0, t, noise), t), X_0)


def test_the_posterior_is_bayes_rule(array) -> None:
    x_t = RNG.normal(size=X_0.shape).astype(np.float32)
    mean, log_variance = flow().q_posterior(array(X_0), array(x_t), array(T))
    for i in range(1, 4):  # at the last step x_{t-1} is independent of x_t
        time, before = (T[i] + 1) / 50, T[i] / 50
        gain = (1 - time) / (1 - before)  # of q(x_t | x_{t-1}), whose variance is what is missing
        variance = time**2 - (gain * before) ** 2
        precision = 1 / before**2 + gain**2 / variance
        expected = ((1 - before) * X_0[i] / before**2 + gain * x_t[i] / variance) / precision
        close(mean[i], expected, 1e-5)
        close(log_variance[i], -np.log(precision), 1e-5)
    close(mean[4], X_0[4] / 50, 1e-5)
    close(log_variance[4], 2 * np.log(49 / 50), 1e-5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_with_a_perfect_denoiser_samplers_end_at_the_image(array, sampler: str, steps: int) -> None:
    process = flow(prediction="x_0").respaced(steps)
    images = sample(lambda x, t, i: array(X_0), array(NOISE), process, sampler, noise=lambda step: array(NOISE))
    close(images, X_0, 1e-5)


def test_on_straight_paths_eulers_steps_are_those_of_ddim(array) -> None:
    process = flow().respaced(7)
    ddim, euler = (
        np.asarray(sample(lambda x, t, i: 0.3 * x + 0.1, array(NOISE), process, sampler))
        for sampler in ("ddim", "euler")
    )
    close(euler, ddim, 1e-5)
    assert ddim.std() > 0.1


def exact(process: GaussianDiffusion, mean: float, deviation: float) -> tuple[Any, Any]:
    """The optimal denoiser of data N(mean, deviation^2), and where the velocity leads from x_T."""
    path = make_path(process.config.schedule, process.config.timesteps)

    def denoise(x: np.ndarray, t: np.ndarray, step: int) -> np.ndarray:
        signal, noise = (values[t][:, None, None, None] for values in (path.signal, path.noise))
        return mean + signal * deviation**2 / (signal**2 * deviation**2 + noise**2) * (x - signal * mean)

    def end(x_T: np.ndarray) -> np.ndarray:  # noqa: N803
        spread = np.sqrt(path.signal[-1] ** 2 * deviation**2 + path.noise[-1] ** 2)
        return mean + deviation * (x_T - path.signal[-1] * mean) / spread

    return denoise, end


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_samplers_along_the_velocity_converge_with_their_order(schedule: str, sampler: str, order: int) -> None:
    config = DiffusionConfig(2000, schedule=schedule, prediction="x_0", clip_denoised=False)
    process = GaussianDiffusion(config)
    denoise, end = exact(process, 0.3, 0.2)
    x_T = RNG.normal(size=(4, 1, 8, 8))  # noqa: N806
    errors = [np.abs(sample(denoise, x_T, process.respaced(steps), sampler) - end(x_T)).max() for steps in (20, 80)]
    assert errors[1] < 0.03
    # Four times the steps; what the last step, which is the shortest of all, adds is the same for both.
    assert 4**order * 0.6 < errors[0] / errors[1] < 4**order * 1.7


def test_what_says_nothing_of_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"prediction is 'eps', but schedule 'flow' ends in noise alone"):
        flow(prediction="eps")


def test_the_bound_of_a_perfect_model_is_that_of_the_decoder() -> None:
    process = flow(prediction="x_0", variance="fixed_small")
    x_t = process.q_sample(X_0, T, NOISE)
    bound = process.variational_bound(X_0, X_0, x_t, T)
    close(bound[1:], 0.0, 1e-6)
    assert 0 < bound[0] < 20
