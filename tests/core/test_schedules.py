"""Schedules, against their papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_vfs.core import ConfigError, DiffusionConfig, make_betas, space_timesteps

pytestmark = pytest.mark.numeric


def test_linear_schedule_of_a_thousand_steps_is_ddpms() -> None:
    betas = make_betas("linear", 1000)
    assert betas[0] == pytest.approx(1e-4) and betas[-1] == pytest.approx(0.02)
    np.testing.assert_allclose(np.diff(betas), (0.02 - 1e-4) / 999)


def test_cosine_schedule_has_the_papers_cumulative_product() -> None:
    alpha_bar = np.cumprod(1 - make_betas("cosine", 100))

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 30, 77, 99):
        assert alpha_bar[t - 1] == pytest.approx(f(t / 100) / f(0))
    assert make_betas("cosine", 100).max() == 0.999


def test_a_beta_of_one_is_refused_with_the_smallest_number_that_works() -> None:
    for timesteps in (2, 10, 20):
        with pytest.raises(ConfigError, match=r"beta of .* not below 1: take at least 21 timesteps"):
            DiffusionConfig(timesteps=timesteps, schedule="linear")
    assert make_betas("linear", 21).max() < 1
    DiffusionConfig(timesteps=2, schedule="cosine")


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 50), (1000, 250), (50, 50), (7, 3), (10, 2)])
def test_respacing_is_even_and_holds_both_ends(timesteps: int, steps: int) -> None:
    kept = space_timesteps(timesteps, steps)
    assert len(set(kept)) == steps and kept[0] == 0 and kept[-1] == timesteps - 1
    assert np.ptp(np.diff(kept)) <= 1 if steps > 1 else True


def test_more_steps_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="51 sampling steps of a process of 50: take 1 to 50"):
        space_timesteps(50, 51)
    with pytest.raises(ConfigError, match="0 sampling steps"):
        space_timesteps(50, 0)
