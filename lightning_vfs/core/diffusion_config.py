"""Configuration of the diffusion process and of how it is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_vfs.core.checks import check_at_least, check_choices
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.schedules import make_betas

Schedule = Literal["linear", "cosine"]
Prediction = Literal["eps", "x_0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]
Loss = Literal["mse", "rescaled_mse", "kl", "rescaled_kl"]
TimestepSampling = Literal["uniform", "loss_second_moment"]


MOST_TIMESTEPS = 1_000_000
"""Of a process; the tables of all of them are in memory."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process.

    Args:
        timesteps: number of diffusion steps T.
        schedule: `linear` (DDPM) or `cosine` (improved DDPM).
        prediction: what the denoiser's output means: the noise (`eps`), the clean image (`x_0`), or the velocity (`v`).
        variance: of the reverse process: `fixed_small` (posterior variance), `fixed_large` (beta), or
            `learned_range` (the denoiser has 2c output channels, trained with the hybrid loss).
        clip_denoised: predictions of x_0 are clipped to [-1, 1] when sampling.
        rescale_timesteps: the denoiser is given t * 1000 / T instead of t.
        loss: `mse`, the mean squared error of the prediction, with `learned_range` plus the variational bound;
            `rescaled_mse`, the same with T / 1000 times the bound (the hybrid loss of improved DDPM); `kl`, the bound
            alone; `rescaled_kl`, T times it.
        min_snr_gamma: the squared error is weighted by the signal-to-noise ratio, cut at this number (5 is usual);
            0 weights all timesteps of the prediction alike.
        timestep_sampling: training draws timesteps alike (`uniform`), or more often where the loss has been large
            (`loss_second_moment`), each weighted so that the expected loss stays the same.

    Raises:
        ConfigError: a value is not allowed, or the schedule has a beta of 1 or above (with the smallest number of
            timesteps that works).
    """

    timesteps: int = 1000
    schedule: Schedule = "cosine"
    prediction: Prediction = "eps"
    variance: Variance = "fixed_small"
    clip_denoised: bool = True
    rescale_timesteps: bool = False
    loss: Loss = "rescaled_mse"
    min_snr_gamma: float = 0.0
    timestep_sampling: TimestepSampling = "uniform"

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "timesteps")
        if self.timesteps > MOST_TIMESTEPS:
            raise ConfigError(f"DiffusionConfig.timesteps is {self.timesteps}; it must be at most {MOST_TIMESTEPS}.")
        if self.min_snr_gamma < 0:
            raise ConfigError(
                f"DiffusionConfig.min_snr_gamma is {self.min_snr_gamma}; it must be above 0, or 0 for none."
            )
        if self.min_snr_gamma and self.loss in ("kl", "rescaled_kl"):
            raise ConfigError(
                f"DiffusionConfig.min_snr_gamma is {self.min_snr_gamma}, but loss {self.loss!r} has no squared error "
                "to weight: set it to 0, or take `mse` or `rescaled_mse`."
            )
        make_betas(self.schedule, self.timesteps)
