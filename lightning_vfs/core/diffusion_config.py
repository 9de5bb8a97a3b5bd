"""Configuration of the diffusion process and of how it is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lightning_vfs.core.checks import check_at_least, check_choices, check_fraction
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.schedules import make_path

Schedule = Literal["linear", "cosine", "flow"]
Prediction = Literal["eps", "x_0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]
Loss = Literal["mse", "rescaled_mse", "kl", "rescaled_kl"]
Weighting = Literal["prediction", "eps", "x_0", "v"]
TimestepSampling = Literal["uniform", "loss_second_moment", "logit_normal", "log_normal"]

MOST_TIMESTEPS = 1_000_000
"""Of a process; the tables of all of them are in memory."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process.

    Args:
        timesteps: number of diffusion steps T.
        schedule: `linear` (DDPM), `cosine` (improved DDPM), or `flow` (straight paths from image to noise, as in flow
            matching).
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
        weighting: whose squared error it is: that of the `prediction`, or that of the `eps`, `x_0` or `v` for which the
            prediction stands at its timestep; `v` with prediction `x_0` is the loss of JiT (Li and He 2025).
        weight_limit: the largest factor that `weighting` puts on the prediction's squared error.
        timestep_sampling: training draws timesteps alike (`uniform`); more often where the loss has been large
            (`loss_second_moment`), each weighted so that the expected loss stays the same; or by a fixed density, for
            which the squared error is not weighted, but the variational bound is: `logit_normal` (the logit of t / T is
            normal; Esser et al. 2024) or `log_normal` (the logarithm of noise over signal is; Karras et al. 2022).
        timestep_mean: of the normal distribution of `logit_normal` and `log_normal`.
        timestep_sd: its standard deviation.
        contrastive_weight: how much predictions are pushed away from the target of another set, from 0 to below 1
            (contrastive flow matching: Stoica et al. 2025, where 0.05 is usual); 0 for none.

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
    weighting: Weighting = "prediction"
    weight_limit: float = 400.0
    timestep_mean: float = 0.0
    timestep_sd: float = 1.0
    contrastive_weight: float = 0.0

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
        make_path(self.schedule, self.timesteps)
        self._check_prediction()
        self._check_weights()

    def _check_prediction(self) -> None:
        if self.schedule == "flow" and self.prediction == "eps":
            raise ConfigError(
                "DiffusionConfig.prediction is 'eps', but schedule 'flow' ends in noise alone, where eps says nothing "
                "about the image: set prediction to 'v' (the velocity) or 'x_0'."
            )

    def _check_weights(self) -> None:
        """Refuse weights of a squared error that the loss does not have, and values out of range."""
        for name, above, given in (
            ("weight_limit", 0.0, self.weight_limit),
            ("timestep_sd", 0.0, self.timestep_sd),
            ("timestep_mean", -math.inf, self.timestep_mean),
        ):
            if not math.isfinite(given) or given <= above:
                raise ConfigError(
                    f"DiffusionConfig.{name} is {given}; it must be a finite number{' above 0' if above == 0 else ''}."
                )
        check_fraction(self, "contrastive_weight")
        if self.min_snr_gamma and self.weighting != "prediction":
            raise ConfigError(
                f"DiffusionConfig.weighting is {self.weighting!r} and min_snr_gamma {self.min_snr_gamma}, but both "
                "weight the squared error: set weighting to 'prediction', or min_snr_gamma to 0."
            )
        if self.loss not in ("kl", "rescaled_kl"):
            return
        for name, none in (("weighting", "prediction"), ("contrastive_weight", 0)):
            if getattr(self, name) != none:
                raise ConfigError(
                    f"DiffusionConfig.{name} is {getattr(self, name)!r}, but loss {self.loss!r} has no squared error: "
                    f"set it to {none!r}, or take `mse` or `rescaled_mse`."
                )
