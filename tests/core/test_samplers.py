"""Samplers against those of diffusers and against an equation that can be solved; their configuration; guidance."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from torch import Tensor

from lightning_vfs.core import (
    ConfigError,
    DiffusionConfig,
    GaussianDiffusion,
    SamplingConfig,
    guided,
    make_betas,
    sample,
)
from tests.numerics import rounding

# numpy's, of what diffusers asks of it
pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

# -- diffusers -------------------------------------------------------------------------------------------------------

STEPS = [2, 5, 10, 20, 50]
OF_DIFFUSERS = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}
GENERATOR = torch.Generator().manual_seed(0)
X_T = torch.randn(2, 1, 8, 8, generator=GENERATOR)
STEP_NOISES = torch.randn(max(STEPS), 2, 1, 8, 8, generator=GENERATOR)


class Run:
    """Sampling by a toy model, by us and, on the same timesteps, by a scheduler of diffusers.

    The toy is one of v, and what else is to be predicted is computed from that, so that the predicted x_0 is a number
    of order 1 also at timesteps with hardly a signal. In float64 the scheduler goes by cumulative products in float64:
    those that it computes itself, in float32, are off by 1e-5 at the end of a cosine schedule (1 - 0.999).
    """

    def __init__(self, steps: int, dtype: torch.dtype, **config: Any) -> None:
        self.process = GaussianDiffusion(DiffusionConfig(1000, **config)).respaced(steps)
        self.config, self.dtype = self.process.config, dtype
        self.betas = make_betas(self.config.schedule, 1000)
        self.alpha_bar = torch.as_tensor(np.cumprod(1 - self.betas))
        self.timesteps = self.process.timesteps[::-1].tolist()

    def model(self, x: Tensor, t: Tensor) -> Tensor:
        time = t.to(self.dtype).reshape(-1, 1, 1, 1) / 1000
        v = torch.sin(2 * x + x.roll(1, dims=-1) + 3 * time) - x.roll(-1, dims=-2).tanh()
        signal, sigma = (
            a.sqrt().to(self.dtype).reshape(-1, 1, 1, 1) for a in (self.alpha_bar[t], 1 - self.alpha_bar[t])
        )
        output = {"eps": sigma * x + signal * v, "x_0": signal * x - sigma * v, "v": v}[self.config.prediction]
        return torch.cat([output, torch.tanh(v)], dim=1) if self.config.variance == "learned_range" else output

    def ours(self, sampler: Any, eta: float = 0.0) -> Tensor:
        return sample(lambda x, t, _: self.model(x, t), X_T.to(self.dtype), self.process, sampler, eta, self.noise)

    def noise(self, step: int) -> Tensor:
        return STEP_NOISES[step].to(self.dtype)

    def options(self) -> dict[str, Any]:
        return {"trained_betas": self.betas, "prediction_type": OF_DIFFUSERS[self.config.prediction]}

    def theirs(self, scheduler: Any, step_of: Callable[[int, int, Tensor, Tensor], Any]) -> Tensor:
        """`step_of` takes the number of the step, its timestep, the model's output and x."""
        if self.dtype == torch.float64:
            scheduler.alphas_cumprod = self.alpha_bar
        x = X_T.to(self.dtype)
        for step, t in zip(range(len(self.timesteps))[::-1], self.timesteps, strict=True):
            x = step_of(step, t, self.model(x, torch.full((2,), t)), x).prev_sample
        return x


def ddpm_difference(monkeypatch: pytest.MonkeyPatch, run: Run) -> float:
    of_diffusers = diffusers()
    scheduler = of_diffusers.DDPMScheduler(
        variance_type=run.config.variance, clip_sample=run.config.clip_denoised, **run.options()
    )
    scheduler.set_timesteps(timesteps=run.timesteps)

    def step_of(step: int, t: int, output: Tensor, x: Tensor) -> Any:
        noise = lambda *_, **__: run.noise(step)  # noqa: E731
        monkeypatch.setattr(of_diffusers.schedulers.scheduling_ddpm, "randn_tensor", noise)
        return scheduler.step(output, t, x)

    return difference(run.ours("ddpm"), run.theirs(scheduler, step_of))


def ddim_difference(run: Run, eta: float) -> float:
    scheduler = diffusers().DDIMScheduler(clip_sample=run.config.clip_denoised, set_alpha_to_one=True, **run.options())

    def step_of(step: int, t: int, output: Tensor, x: Tensor) -> Any:
        # It takes no timesteps, and strides by 1000 over the number of steps: here as many as make it our stride.
        scheduler.num_inference_steps = Fraction(1000, t - [*run.timesteps, -1][len(run.timesteps) - step])
        # We derive the noise from the clipped x_0, as guided-diffusion does.
        options = {"eta": eta, "use_clipped_model_output": True, "variance_noise": run.noise(step) if eta else None}
        return scheduler.step(output, t, x, **options)

    return difference(run.ours("ddim", eta), run.theirs(scheduler, step_of))


def dpmpp_2m_difference(run: Run) -> float:
    # It has no clipping, but "dynamic thresholding", which with the maximum of 1 is that.
    clip = {"thresholding": run.config.clip_denoised, "sample_max_value": 1.0}
    solver = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    scheduler = diffusers().DPMSolverMultistepScheduler(**clip, **solver, **run.options())
    scheduler.set_timesteps(timesteps=run.timesteps)
    if run.dtype == torch.float64:
        kept = run.alpha_bar[run.timesteps]
        scheduler.sigmas = torch.cat([((1 - kept) / kept).sqrt(), torch.zeros(1)])
    return difference(run.ours("dpmpp_2m"), run.theirs(scheduler, lambda _, t, output, x: scheduler.step(output, t, x)))


def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="install the extra `test`")


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype and ours.abs().mean() > 0.1 and ours.abs().max() < 20
    return float((ours - theirs).abs().max())


def every_process(test: Callable[..., None]) -> Callable[..., None]:
    for name, values in {"steps": STEPS, "clip": [True, False], "schedule": ["linear", "cosine"]}.items():
        test = pytest.mark.parametrize(name, values)(test)
    return test


@every_process
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_is_that_of_diffusers(monkeypatch, variance: str, schedule: str, clip: bool, steps: int) -> None:
    run = Run(steps, torch.float64, schedule=schedule, variance=variance, clip_denoised=clip)
    assert ddpm_difference(monkeypatch, run) < 1e-9


@every_process
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_is_that_of_diffusers(eta: float, schedule: str, clip: bool, steps: int) -> None:
    assert ddim_difference(Run(steps, torch.float64, schedule=schedule, clip_denoised=clip), eta) < 1e-9


@every_process
def test_dpmpp_2m_is_that_of_diffusers(schedule: str, clip: bool, steps: int) -> None:
    run = Run(steps, torch.float64, schedule=schedule, clip_denoised=clip)
    assert dpmpp_2m_difference(run) < 3e-5  # it rounds x to float32 at every step


@pytest.mark.parametrize("prediction", ["x_0", "v"])
def test_other_predictions_are_those_of_diffusers(monkeypatch, prediction: str) -> None:
    run = Run(10, torch.float64, schedule="linear", prediction=prediction, variance="fixed_large")
    assert ddpm_difference(monkeypatch, run) < 1e-9
    assert ddim_difference(run, 0.5) < 1e-9
    assert dpmpp_2m_difference(run) < 3e-5


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [10, 50])
def test_float32_is_near_the_schedulers_as_they_are(monkeypatch, steps: int, clip: bool) -> None:
    run = Run(steps, torch.float32, schedule="linear", clip_denoised=clip)
    assert ddpm_difference(monkeypatch, run) < 1e-4
    assert ddim_difference(run, 0.5) < 1e-4
    assert dpmpp_2m_difference(run) < 1e-4


# -- an equation that can be solved ----------------------------------------------------------------------------------


def ode_error(sampler: Any, steps: int) -> float:
    """Relative error at the last but one step for data N(0, 0.5^2), with E[x_0 | x_t].

    Its probability-flow equation keeps x_t over its standard deviation, sqrt(alpha_bar 0.5^2 + 1 - alpha_bar). The
    steps leave out the lowest timesteps, where the logarithm of the signal-to-noise ratio leaps.
    """
    timesteps, s = 20_000, 0.5
    kept = tuple(np.linspace(timesteps // 5, timesteps - 1, steps).round().astype(int).tolist())
    config = DiffusionConfig(timesteps, "linear", "x_0", clip_denoised=False)
    alpha_bar = np.cumprod(1 - make_betas("linear", timesteps))
    deviation = np.sqrt(alpha_bar * s**2 + 1 - alpha_bar)
    x_T, seen = np.ones((1, 1, 1, 1)), {}  # noqa: N806 - the papers' name

    def denoise(x: np.ndarray, t: np.ndarray, step: int) -> np.ndarray:
        seen[step] = float(x[0, 0, 0, 0])
        return np.sqrt(alpha_bar[t[0]]) * s**2 / deviation[t[0]] ** 2 * x

    sample(denoise, x_T, GaussianDiffusion(config, kept), sampler)
    return abs(seen[0] / (deviation[kept[0]] / deviation[kept[-1]]) - 1)


def test_dpmpp_2m_is_of_second_order_and_better_than_ddim() -> None:
    errors = {sampler: [ode_error(sampler, steps) for steps in (20, 40, 80, 160)] for sampler in ("dpmpp_2m", "ddim")}
    for order, sampler in ((2, "dpmpp_2m"), (1, "ddim")):
        for coarse, fine in zip(errors[sampler][:-1], errors[sampler][1:], strict=True):
            assert np.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert all(second < first / 5 for second, first in zip(errors["dpmpp_2m"], errors["ddim"], strict=True))


# -- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 0}, ["steps is 0", "at least 1"]),
        ({"steps": 2.5}, ["steps is 2.5", "whole number"]),
        ({"sampler": "plms"}, ["sampler is 'plms'", "'ddpm', 'ddim', 'dpmpp_2m', 'euler', 'heun'"]),
        ({"eta": -0.1}, ["eta is -0.1", "from 0", "to 1"]),
        ({"eta": 1.1}, ["eta is 1.1", "from 0", "to 1"]),
        ({"eta": float("nan")}, ["eta is nan"]),
        ({"eta": 0.5, "sampler": "ddpm"}, ["eta is 0.5", "DDIM's", "'ddpm'", "set it to 0"]),
        ({"eta": 0.5, "sampler": "dpmpp_2m"}, ["eta is 0.5", "DDIM's", "'dpmpp_2m'"]),
        ({"guidance_scale": -1.0}, ["guidance_scale is -1.0", "at least 0"]),
        ({"guidance_scale": float("inf")}, ["guidance_scale is inf", "finite"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale is nan", "finite"]),
        ({"guidance_interval": (5, 5)}, ["guidance_interval is (5, 5)", "two whole numbers"]),
        ({"guidance_interval": [-1, 5]}, ["guidance_interval is (-1, 5)", "0 or more"]),
        ({"guidance_interval": (1, 2, 3)}, ["guidance_interval is (1, 2, 3)"]),
        ({"guidance_interval": (1,)}, ["guidance_interval is (1,)"]),
        ({"guidance_interval": (0.5, 2)}, ["guidance_interval is (0.5, 2)", "whole"]),
    ],
)
def test_a_bad_value_is_refused_by_name(values: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        SamplingConfig(**values)
    assert all(text in str(error.value) for text in ["SamplingConfig.", *says]), str(error.value)


def test_good_values_are_taken_and_make_a_key() -> None:
    config = SamplingConfig(250, "ddim", 1.0, 0.0, [0, 1000])
    assert config.guidance_interval == (0, 1000)
    assert {config: 1}[SamplingConfig(250, "ddim", 1.0, 0.0, (0, 1000))] == 1
    assert config.is_guided and SamplingConfig(guidance_scale=1.5).is_guided and not SamplingConfig().is_guided


def test_guidance_is_confined_to_its_interval() -> None:
    timesteps = np.array([0, 199, 200, 500, 799, 800, 999])
    inside = SamplingConfig(guidance_scale=2.5, guidance_interval=(200, 800)).guidance_scales(timesteps)
    assert inside.dtype == np.float64 and inside.tolist() == [1, 1, 2.5, 2.5, 2.5, 1, 1]
    everywhere = SamplingConfig(guidance_scale=2.5).guidance_scales(timesteps)
    assert everywhere.dtype == np.float64 and everywhere.tolist() == [2.5] * 7


# -- guidance --------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
CONDITIONAL, UNCONDITIONAL = RNG.normal(size=(2, 3, 4, 5, 5)).astype(np.float32)


@pytest.mark.parametrize("channels", [2, 4])
def test_guided_is_its_formula_and_leaves_the_variance_alone(array, channels: int) -> None:
    conditional, unconditional = array(CONDITIONAL), array(UNCONDITIONAL)
    for scale in (0, 0.5, 3.0, np.float64(3), array(np.float64(3.0))):
        output = guided(conditional, unconditional, scale, channels)
        assert output.dtype == conditional.dtype and output.shape == conditional.shape
        expected = CONDITIONAL.astype(np.float64)
        c, u = CONDITIONAL[:, :channels], UNCONDITIONAL[:, :channels]
        expected[:, :channels] = u + float(scale) * (c.astype(np.float64) - u)
        np.testing.assert_allclose(np.asarray(output), expected, **rounding(2, np.abs(expected).max()))
        np.testing.assert_array_equal(np.asarray(output)[:, channels:], CONDITIONAL[:, channels:])
    np.testing.assert_array_equal(np.asarray(guided(conditional, unconditional, 1.0, channels)), CONDITIONAL)
    assert type(output) is type(conditional) and array_namespace(output) is array_namespace(conditional)
