"""Configuration of sampling: how many steps of which sampler, and how much guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_vfs.core.checks import as_tuples, check_at_least, check_choices, is_path
from lightning_vfs.core.errors import ConfigError

SamplerName = Literal["ddpm", "ddim", "dpmpp_2m", "euler", "heun"] | str


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn from a trained model.

    Args:
        steps: timesteps of the process that are taken.
        sampler: `ddpm` (ancestral; Ho et al. 2020), `ddim` (Song et al. 2021), `dpmpp_2m` (DPM-Solver++(2M),
            deterministic and of second order; Lu et al. 2022b), `euler` or `heun` (along the velocity of the path,
            deterministic; `heun` is of second order and takes two model outputs a step), or the path of a custom
            function (see CONTRIBUTING.md).
        eta: of `ddim`, and of a custom function; 0 is deterministic, 1 as noisy as `ddpm`.
        guidance_scale: classifier-free guidance; 1 is none, above 1 the support weighs more, 0 leaves it out.
        guidance_interval: timesteps `low` to below `high`, of the full process, that are guided; all by default.

    Raises:
        ConfigError: a value is not allowed.
    """

    steps: int = 50
    sampler: SamplerName = "ddim"
    eta: float = 0.0
    guidance_scale: float = 1.0
    guidance_interval: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        as_tuples(self, "guidance_interval")
        check_choices(self)
        check_at_least(self, 1, "steps")
        if not 0 <= self.eta <= 1:
            raise ConfigError(
                f"SamplingConfig.eta is {self.eta}; it must be from 0 (deterministic) to 1 (as noisy as DDPM)."
            )
        if self.eta > 0 and not self.takes_eta:
            raise ConfigError(
                f"SamplingConfig.eta is {self.eta}, but it is DDIM's, and sampler is {self.sampler!r}: "
                "set it to 0, or use sampler 'ddim'."
            )
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ConfigError(
                f"SamplingConfig.guidance_scale is {self.guidance_scale}; it must be a finite number of at least 0."
            )
        if self.guidance_interval is not None and not _is_interval(self.guidance_interval):
            raise ConfigError(
                f"SamplingConfig.guidance_interval is {self.guidance_interval}; it must be two whole numbers, the "
                "first timestep that is guided (0 or more) and, above it, the first that no longer is."
            )

    @property
    def takes_eta(self) -> bool:
        """Whether the images depend on eta."""
        return self.sampler == "ddim" or is_path(self.sampler)

    @property
    def is_guided(self) -> bool:
        """Whether sampling needs the model without its support, too."""
        return self.guidance_scale != 1

    def guidance_scales(self, timesteps: np.ndarray) -> np.ndarray:
        """Guidance at timesteps of the full process: int (steps,) -> float64 (steps,).

        The scale within the interval, 1 elsewhere (Kynkäänniemi et al. 2024).
        """
        low, high = self.guidance_interval or (0, math.inf)
        return np.where((low <= timesteps) & (timesteps < high), self.guidance_scale, 1.0)


def _is_interval(values: tuple[int, ...]) -> bool:
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    return whole and len(values) == 2 and 0 <= values[0] < values[1]
