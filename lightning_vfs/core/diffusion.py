"""Gaussian diffusion: forward process, posterior, reverse step, losses. Images are (b, c, h, w) in [-1, 1]."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device
from jaxtyping import Float, Int

from lightning_vfs.core.config import DiffusionConfig
from lightning_vfs.core.gaussian import discretized_gaussian_log_likelihood, gaussian_kl, mean_flat
from lightning_vfs.core.schedules import make_betas, space_timesteps

Images = Float[Any, "b c *image"]
Outputs = Float[Any, "b outputs *image"]
Steps = Int[Any, " b"]


class MeanVariance(NamedTuple):
    """A reverse step p(x_{t-1} | x_t): its mean and log-variance, and the predicted clean image."""

    mean: Images
    log_variance: Images
    pred_x_0: Images


class GaussianDiffusion:
    """A diffusion process of T steps, or of a subset of them; t counts the steps that are kept.

    Args:
        config: schedule, prediction type, variance.
        kept: timesteps of the full process that are kept, ascending; all by default.

    Attributes:
        timesteps: the kept timesteps of the full process, int64 (kept,): what the denoiser is given for step t.
    """

    def __init__(self, config: DiffusionConfig, kept: tuple[int, ...] | None = None) -> None:
        self.config = config
        alpha_bar = np.cumprod(1 - make_betas(config.schedule, config.timesteps))
        kept = kept or tuple(range(config.timesteps))
        self.num_steps = len(kept)
        alpha_bar = alpha_bar[list(kept)]
        previous = np.append(1.0, alpha_bar[:-1])
        betas = 1 - alpha_bar / previous
        posterior_variance = betas * (1 - previous) / (1 - alpha_bar)
        # The posterior variance of the first step is 0; as in improved DDPM, the second step's stands in for its log.
        smallest = posterior_variance[1] if self.num_steps > 1 else betas[0]
        self._host_tables: dict[str, np.ndarray] = {
            "timesteps": np.asarray(kept, dtype=np.int64),
            "alpha_bar": np.append(1.0, alpha_bar),  # entry t + 1 belongs to step t; entry 0 is the clean image
            "sqrt_alpha_bar": np.sqrt(alpha_bar),
            "sqrt_one_minus_alpha_bar": np.sqrt(1 - alpha_bar),
            "inverse_sqrt_alpha_bar": 1 / np.sqrt(alpha_bar),
            "noise_to_signal": np.sqrt(1 / alpha_bar - 1),
            "posterior_mean_x_0": betas * np.sqrt(previous) / (1 - alpha_bar),
            "posterior_mean_x_t": (1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bar),
            "posterior_log_variance": np.log(np.append(smallest, posterior_variance[1:])),
            "log_betas": np.log(betas),
            "fixed_large_log_variance": np.log(np.append(smallest, betas[1:])),
            **_dpmpp_2m_tables(alpha_bar, previous),
        }
        if config.min_snr_gamma:
            self._host_tables["min_snr_weight"] = _min_snr_weight(alpha_bar, config)
        self._tables: dict[str, Any] = dict(self._host_tables)
        self._place: tuple[Any, ...] | None = None  # that `on` has put them to

    @property
    def timesteps(self) -> Any:
        return self._tables["timesteps"]

    def respaced(self, steps: int) -> GaussianDiffusion:
        """The process over `steps` evenly spaced timesteps (Nichol and Dhariwal 2021, section 4).

        Raises:
            ConfigError: steps below 1 or above T.
        """
        return GaussianDiffusion(self.config, space_timesteps(self.config.timesteps, steps))

    def on(self, like: Any) -> GaussianDiffusion:
        """The same process with its tables as arrays of `like`'s kind, precision and device: a step copies nothing."""
        place = type(like), device(like), array_namespace(like).finfo(like.dtype).bits > 32
        if place == self._place:
            return self
        moved = copy.copy(self)
        moved._place = place
        moved._tables = {name: _array_like(table, like) for name, table in self._host_tables.items()}
        return moved

    def _take(self, name: str, t: Any, like: Any) -> Any:
        """Entries of a table, shaped to broadcast: (b,) -> (b, 1, ..., 1)."""
        xp = array_namespace(like)
        table = self._tables[name]
        values = xp.take(_array_like(table, like) if isinstance(table, np.ndarray) else table, t, axis=0)
        return xp.reshape(xp.astype(values, like.dtype), (-1,) + (1,) * (like.ndim - 1))

    # -- forward process ------------------------------------------------------------------------------------------

    def q_sample(self, x_0: Images, t: Steps, noise: Images) -> Images:
        """x_t of x_0: sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (Ho et al. 2020, eq. 4). t is int (b,)."""
        return self._take("sqrt_alpha_bar", t, x_0) * x_0 + self._take("sqrt_one_minus_alpha_bar", t, x_0) * noise

    def q_posterior(self, x_0: Images, x_t: Images, t: Steps) -> tuple[Images, Float[Any, "#b #c *#image"]]:
        """Mean and log-variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        mean = self._take("posterior_mean_x_0", t, x_t) * x_0 + self._take("posterior_mean_x_t", t, x_t) * x_t
        return mean, self._take("posterior_log_variance", t, x_t)

    # -- what the denoiser's output means -------------------------------------------------------------------------

    def target(self, x_0: Images, t: Steps, noise: Images) -> Images:
        """What the denoiser is trained to predict: noise, x_0 or v (Salimans and Ho 2022, appendix D)."""
        if self.config.prediction == "eps":
            return noise
        if self.config.prediction == "x_0":
            return x_0
        return self._take("sqrt_alpha_bar", t, x_0) * noise - self._take("sqrt_one_minus_alpha_bar", t, x_0) * x_0

    def predict_x_0(
        self,
        prediction: Images,
        x_t: Images,
        t: Steps,
        clip: bool | None = None,
    ) -> Images:
        """x_0 from the denoiser's prediction, clipped to [-1, 1] if `clip` (by default the configuration) says so."""
        if self.config.prediction == "eps":
            inverse_signal, ratio = self._take("inverse_sqrt_alpha_bar", t, x_t), self._take("noise_to_signal", t, x_t)
            x_0 = inverse_signal * x_t - ratio * prediction
        elif self.config.prediction == "x_0":
            x_0 = prediction
        else:
            signal, sigma = self._take("sqrt_alpha_bar", t, x_t), self._take("sqrt_one_minus_alpha_bar", t, x_t)
            x_0 = signal * x_t - sigma * prediction
        clip = self.config.clip_denoised if clip is None else clip
        return array_namespace(x_0).clip(x_0, -1.0, 1.0) if clip else x_0

    def _split(self, model_output: Any, x_t: Any) -> tuple[Any, Any | None]:
        """Prediction and, where it is learned, the variance fraction in [-1, 1]."""
        c = x_t.shape[1]
        learned = self.config.variance == "learned_range"
        if model_output.shape[1] != (2 * c if learned else c):
            raise ValueError(
                f"The denoiser gave {model_output.shape[1]} channels for images of {c}; "
                f"variance `{self.config.variance}` needs {2 * c if learned else c}."
            )
        return (model_output[:, :c], model_output[:, c:]) if learned else (model_output, None)

    # -- reverse process ------------------------------------------------------------------------------------------

    def p_mean_variance(
        self,
        model_output: Outputs,
        x_t: Images,
        t: Steps,
        clip: bool | None = None,
    ) -> MeanVariance:
        """Mean, log-variance and predicted x_0 of p(x_{t-1} | x_t).

        Args:
            model_output: (b, c, h, w), or (b, 2c, h, w) with `learned_range`, whose second half v interpolates the
                log-variance between the posterior's and beta's (Nichol and Dhariwal 2021, eq. 15).
            x_t: (b, c, h, w).
            t: int (b,).
            clip: whether the predicted x_0 is clipped to [-1, 1]; by default what the configuration says.

        Raises:
            ValueError: the number of channels does not fit the variance.
        """
        prediction, fraction = self._split(model_output, x_t)
        pred_x_0 = self.predict_x_0(prediction, x_t, t, clip)
        mean, log_variance = self.q_posterior(pred_x_0, x_t, t)
        if fraction is not None:
            weight = (fraction + 1) / 2
            log_variance = weight * self._take("log_betas", t, x_t) + (1 - weight) * log_variance
        elif self.config.variance == "fixed_large":
            log_variance = self._take("fixed_large_log_variance", t, x_t)
        xp = array_namespace(x_t)
        return MeanVariance(mean, xp.broadcast_to(log_variance, x_t.shape), pred_x_0)

    def ddpm_step(
        self,
        model_output: Outputs,
        x_t: Images,
        t: Steps,
        noise: Images,
    ) -> Images:
        """x_{t-1} by ancestral sampling (Ho et al. 2020, algorithm 2); no noise is added at t = 0."""
        xp = array_namespace(x_t)
        step = self.p_mean_variance(model_output, x_t, t)
        not_last = xp.reshape(xp.astype(t > 0, x_t.dtype), (-1,) + (1,) * (x_t.ndim - 1))
        return step.mean + not_last * xp.exp(0.5 * step.log_variance) * noise

    def ddim_step(
        self,
        model_output: Outputs,
        x_t: Images,
        t: Steps,
        t_prev: Steps,
        eta: float = 0.0,
        noise: Images | None = None,
    ) -> Images:
        """x at step t_prev from x_t (Song et al. 2021, eq. 12 and 16); t_prev = -1 is the clean image.

        Args:
            t: int (b,), steps of x_t.
            t_prev: int (b,), below t.
            eta: 0 for the deterministic DDIM, 1 for the variance of DDPM.
            noise: (b, c, h, w), needed when eta is above 0.

        Raises:
            ValueError: eta above 0 without noise.
        """
        if eta > 0 and noise is None:
            raise ValueError(f"ddim_step with eta {eta} adds noise: give it `noise` of the shape of x_t.")
        xp = array_namespace(x_t)
        prediction, _ = self._split(model_output, x_t)
        x_0 = self.predict_x_0(prediction, x_t, t)
        eps = (x_t - self._take("sqrt_alpha_bar", t, x_t) * x_0) / self._take("sqrt_one_minus_alpha_bar", t, x_t)
        alpha_bar, previous = self._take("alpha_bar", t + 1, x_t), self._take("alpha_bar", t_prev + 1, x_t)
        sigma = eta * xp.sqrt((1 - previous) / (1 - alpha_bar)) * xp.sqrt(1 - alpha_bar / previous)
        x_prev = xp.sqrt(previous) * x_0 + xp.sqrt(xp.clip(1 - previous - sigma**2, 0.0, None)) * eps
        return x_prev if noise is None else x_prev + sigma * noise

    def dpmpp_2m_step(
        self,
        model_output: Outputs,
        x_t: Images,
        t: Steps,
        x_0_before: Images,
    ) -> tuple[Images, Images]:
        """x_{t-1} by DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), and the predicted x_0 for the step after.

        Args:
            x_0_before: the x_0 that was predicted at step t + 1, (b, c, h, w). The first step of the process and the
                last one, to the clean image, are of first order: there it has no effect, but it must be finite.
        """
        prediction, _ = self._split(model_output, x_t)
        x_0 = self.predict_x_0(prediction, x_t, t)
        extrapolated = x_0 + self._take("dpmpp_2m_extrapolation", t, x_t) * (x_0 - x_0_before)
        x_prev = self._take("dpmpp_2m_x_t", t, x_t) * x_t + self._take("dpmpp_2m_x_0", t, x_t) * extrapolated
        return x_prev, x_0

    # -- losses ---------------------------------------------------------------------------------------------------

    def variational_bound(
        self,
        model_output: Outputs,
        x_0: Images,
        x_t: Images,
        t: Steps,
        clip: bool | None = None,
    ) -> Float[Any, " b"]:
        """One term of the variational bound, in bits per dimension (Ho et al. 2020, eq. 5): (b,).

        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and at t = 0 the likelihood of the 8-bit image. `clip` as in
        `p_mean_variance`.
        """
        xp = array_namespace(x_0)
        true_mean, true_log_variance = self.q_posterior(x_0, x_t, t)
        step = self.p_mean_variance(model_output, x_t, t, clip)
        kl = mean_flat(gaussian_kl(true_mean, true_log_variance, step.mean, step.log_variance))
        decoder_nll = -mean_flat(discretized_gaussian_log_likelihood(x_0, step.mean, 0.5 * step.log_variance))
        return xp.where(t == 0, decoder_nll, kl) / math.log(2)

    def training_losses(
        self,
        model_output: Outputs,
        x_0: Images,
        x_t: Images,
        t: Steps,
        noise: Images,
        stop_gradient: Callable[[Any], Any],
    ) -> Float[Any, " b"]:
        """Loss of every image: (b,), of the kind that the configuration names.

        The mean squared error of the prediction; with `learned_range` plus the variational bound with no gradient
        through the mean, by T / 1000 in `rescaled_mse` (Nichol and Dhariwal 2021, eq. 16). Or the bound alone, by T in
        `rescaled_kl`. Nothing is clipped here: that would stop gradients. With `min_snr_gamma` the squared error, not
        the bound, is weighted by the signal-to-noise ratio (Hang et al. 2023, section 3.4).

        Args:
            stop_gradient: `torch.Tensor.detach` or `jax.lax.stop_gradient`.
        """
        kind = self.config.loss
        if kind in ("kl", "rescaled_kl"):
            bound = self.variational_bound(model_output, x_0, x_t, t, clip=False)
            return bound * (self.num_steps if kind == "rescaled_kl" else 1)
        prediction, fraction = self._split(model_output, x_t)
        loss = mean_flat((self.target(x_0, t, noise) - prediction) ** 2)
        if self.config.min_snr_gamma:
            loss = self._take("min_snr_weight", t, loss) * loss
        if fraction is None:
            return loss
        xp = array_namespace(x_0)
        frozen_mean = xp.concat([stop_gradient(prediction), fraction], axis=1)
        bound = self.variational_bound(frozen_mean, x_0, x_t, t, clip=False)
        return loss + bound * (self.num_steps / 1000 if kind == "rescaled_mse" else 1)


def _array_like(table: np.ndarray, like: Any) -> Any:
    """A table as an array of `like`'s kind on its device, in float64 only if `like` is: MPS and TPUs have none."""
    xp = array_namespace(like)
    if table.dtype == np.float64 and xp.finfo(like.dtype).bits <= 32:
        table = table.astype(np.float32)
    return xp.asarray(table, device=device(like))


def _dpmpp_2m_tables(alpha_bar: np.ndarray, previous: np.ndarray) -> dict[str, np.ndarray]:
    """What a step of DPM-Solver++(2M) multiplies with (Lu et al. 2022b, algorithm 2), each float64 (steps,).

    x_{t-1} = a x_t + b (x_0 + c (x_0 - x_0 before)) with a = sigma_{t-1} / sigma_t, b = alpha_{t-1} (1 - exp(-h_t)),
    which is alpha_{t-1} - a alpha_t, and c = h_t / (2 h_{t+1}), where h_t = lambda_{t-1} - lambda_t and
    lambda = log(alpha / sigma). c is 0 at the first step, which has no step before it, and at the last one, whose h is
    infinite.
    """
    x_t = np.sqrt((1 - previous) / (1 - alpha_bar))
    h = -np.diff(0.5 * np.log(alpha_bar / (1 - alpha_bar)))
    extrapolation = np.zeros_like(alpha_bar)
    extrapolation[1:-1] = h[:-1] / (2 * h[1:])
    return {
        "dpmpp_2m_x_t": x_t,
        "dpmpp_2m_x_0": np.sqrt(previous) - x_t * np.sqrt(alpha_bar),
        "dpmpp_2m_extrapolation": extrapolation,
    }


def _min_snr_weight(alpha_bar: np.ndarray, config: DiffusionConfig) -> np.ndarray:
    """Weights of the squared error (Hang et al. 2023, section 3.4), float64 (steps,).

    min(SNR, gamma) of an error of x_0; of eps and v, that over the SNR and over SNR + 1, by which their errors exceed
    that of the x_0 they stand for.
    """
    snr, gamma = alpha_bar / (1 - alpha_bar), config.min_snr_gamma
    if config.prediction == "eps":
        return np.minimum(1.0, gamma / snr)  # in this form also where no signal is left
    return np.minimum(snr, gamma) / (snr + 1 if config.prediction == "v" else 1)
