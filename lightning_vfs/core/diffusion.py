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
from lightning_vfs.core.schedules import Path, make_path, space_timesteps

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
        kept = kept or tuple(range(config.timesteps))
        self.num_steps = len(kept)
        path = Path(*(values[list(kept)] for values in make_path(config.schedule, config.timesteps)))
        signal, noise = path.signal, path.noise
        # Entry t + 1 belongs to step t; entry 0 to the clean image.
        signal_from_0, noise_from_0 = np.append(1.0, signal), np.append(0.0, noise)
        previous_signal, previous_noise = signal_from_0[:-1], noise_from_0[:-1]
        # q(x_t | x_{t-1}) has the mean step_signal x_{t-1} and the variance beta.
        step_signal = signal / previous_signal
        betas = noise**2 - (step_signal * previous_noise) ** 2
        posterior_variance = betas * (previous_noise / noise) ** 2
        # The posterior variance of the first step is 0; as in improved DDPM, the second step's stands in for its log.
        smallest = posterior_variance[1] if self.num_steps > 1 else betas[0]
        self._host_tables: dict[str, np.ndarray] = {
            "timesteps": np.asarray(kept, dtype=np.int64),
            "signal": signal,
            "noise": noise,
            "signal_from_0": signal_from_0,
            "noise_from_0": noise_from_0,
            "velocity_noise": path.velocity_noise,
            "velocity_image": path.velocity_image,
            "time_step": np.diff(path.time, prepend=0.0),
            "posterior_mean_x_0": betas * previous_signal / noise**2,
            "posterior_mean_x_t": step_signal * (previous_noise / noise) ** 2,
            "posterior_log_variance": np.log(np.append(smallest, posterior_variance[1:])),
            "log_betas": np.log(betas),
            "fixed_large_log_variance": np.log(np.append(smallest, betas[1:])),
            **_dpmpp_2m_tables(signal, noise, previous_signal, previous_noise),
        }
        if config.prediction == "eps":
            self._host_tables |= {"inverse_signal": 1 / signal, "noise_to_signal": noise / signal}
        if config.min_snr_gamma or config.weighting != "prediction":
            self._host_tables["loss_weight"] = _loss_weight(signal, noise, config)
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
        """x_t of x_0: signal_t x_0 + noise_t noise (Ho et al. 2020, eq. 4; Lipman et al. 2023). t is int (b,)."""
        return self._take("signal", t, x_0) * x_0 + self._take("noise", t, x_0) * noise

    def q_posterior(self, x_0: Images, x_t: Images, t: Steps) -> tuple[Images, Float[Any, "#b #c *#image"]]:
        """Mean and log-variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        mean = self._take("posterior_mean_x_0", t, x_t) * x_0 + self._take("posterior_mean_x_t", t, x_t) * x_t
        return mean, self._take("posterior_log_variance", t, x_t)

    # -- what the denoiser's output means -------------------------------------------------------------------------

    def target(self, x_0: Images, t: Steps, noise: Images) -> Images:
        """What the denoiser is trained to predict: noise, x_0 or v, the velocity of the path (`schedules.Path`)."""
        if self.config.prediction == "eps":
            return noise
        if self.config.prediction == "x_0":
            return x_0
        return self._velocity(x_0, t, noise)

    def _velocity(self, x_0: Any, t: Any, noise: Any) -> Any:
        return self._take("velocity_noise", t, x_0) * noise - self._take("velocity_image", t, x_0) * x_0

    def predict_x_0(
        self,
        prediction: Images,
        x_t: Images,
        t: Steps,
        clip: bool | None = None,
    ) -> Images:
        """x_0 from the denoiser's prediction, clipped to [-1, 1] if `clip` (by default the configuration) says so."""
        if self.config.prediction == "eps":
            x_0 = self._take("inverse_signal", t, x_t) * x_t - self._take("noise_to_signal", t, x_t) * prediction
        elif self.config.prediction == "x_0":
            x_0 = prediction
        else:
            x_0 = self._take("velocity_noise", t, x_t) * x_t - self._take("noise", t, x_t) * prediction
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
        x_0, eps = self._image_and_noise(model_output, x_t, t)
        signal, deviation = self._take("signal_from_0", t_prev + 1, x_t), self._take("noise_from_0", t_prev + 1, x_t)
        if eta == 0:
            return signal * x_0 + deviation * eps
        # Of the reverse step with the variance of DDPM, from t to t_prev at once.
        left = self._take("signal", t, x_t) / signal * deviation / self._take("noise", t, x_t)
        sigma = eta * deviation * xp.sqrt(xp.clip(1 - left**2, 0.0, None))
        x_prev = signal * x_0 + xp.sqrt(xp.clip(deviation**2 - sigma**2, 0.0, None)) * eps
        return x_prev + sigma * noise

    def _image_and_noise(self, model_output: Any, x_t: Any, t: Any) -> tuple[Any, Any]:
        """The clean image that the model predicts, and the noise that x_t then has."""
        prediction, _ = self._split(model_output, x_t)
        x_0 = self.predict_x_0(prediction, x_t, t)
        return x_0, (x_t - self._take("signal", t, x_t) * x_0) / self._take("noise", t, x_t)

    def velocity(self, model_output: Outputs, x_t: Images, t: Steps) -> Images:
        """dx/d time of the path on which the predicted image lies (`schedules.Path`): (b, c, h, w)."""
        x_0, eps = self._image_and_noise(model_output, x_t, t)
        return self._velocity(x_0, t, eps)

    def euler_step(self, velocity: Images, x_t: Images, t: Steps) -> Images:
        """x_{t-1} by a step along the velocity, against time; x at step -1 is the clean image."""
        return x_t - self._take("time_step", t, x_t) * velocity

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
        *,
        negative: Images | None = None,
        contrast: Float[Any, " b"] | None = None,
        bound_weight: Float[Any, " b"] | None = None,
    ) -> Float[Any, " b"]:
        """Loss of every image: (b,), of the kind that the configuration names.

        The mean squared error of the prediction; with `learned_range` plus the variational bound with no gradient
        through the mean, by T / 1000 in `rescaled_mse` (Nichol and Dhariwal 2021, eq. 16). Or the bound alone, by T in
        `rescaled_kl`. Nothing is clipped here: that would stop gradients. With `min_snr_gamma` or a `weighting` the
        squared error, not the bound, is weighted by the timestep.

        Args:
            stop_gradient: `torch.Tensor.detach` or `jax.lax.stop_gradient`.
            negative: (b, c, h, w), the target of another set at the same timesteps. Of the squared error that of this
                target is subtracted, times `contrastive_weight` (Stoica et al. 2025, arXiv 2506.05350, eq. 8).
            contrast: (b,), 0 for images that are not pushed away from it, and 1.
            bound_weight: (b,), of the variational bound: 1 / (T p_t) for timesteps drawn with probability p_t, so that
                the expected bound is that of uniform timesteps.
        """
        kind = self.config.loss
        if kind in ("kl", "rescaled_kl"):
            bound = self.variational_bound(model_output, x_0, x_t, t, clip=False)
            bound = bound if bound_weight is None else bound_weight * bound
            return bound * (self.num_steps if kind == "rescaled_kl" else 1)
        prediction, fraction = self._split(model_output, x_t)
        loss = mean_flat((self.target(x_0, t, noise) - prediction) ** 2)
        if negative is not None:
            away = self.config.contrastive_weight * mean_flat((negative - prediction) ** 2)
            loss = loss - (away if contrast is None else contrast * away)
        if "loss_weight" in self._tables:
            loss = self._take("loss_weight", t, loss) * loss
        if fraction is None:
            return loss
        xp = array_namespace(x_0)
        frozen_mean = xp.concat([stop_gradient(prediction), fraction], axis=1)
        bound = self.variational_bound(frozen_mean, x_0, x_t, t, clip=False)
        bound = bound if bound_weight is None else bound_weight * bound
        return loss + bound * (self.num_steps / 1000 if kind == "rescaled_mse" else 1)


def _array_like(table: np.ndarray, like: Any) -> Any:
    """A table as an array of `like`'s kind on its device, in float64 only if `like` is: MPS and TPUs have none."""
    xp = array_namespace(like)
    if table.dtype == np.float64 and xp.finfo(like.dtype).bits <= 32:
        table = table.astype(np.float32)
    return xp.asarray(table, device=device(like))


def _dpmpp_2m_tables(
    signal: np.ndarray, noise: np.ndarray, previous_signal: np.ndarray, previous_noise: np.ndarray
) -> dict[str, np.ndarray]:
    """What a step of DPM-Solver++(2M) multiplies with (Lu et al. 2022b, algorithm 2), each float64 (steps,).

    x_{t-1} = a x_t + b (x_0 + c (x_0 - x_0 before)) with a = sigma_{t-1} / sigma_t, b = alpha_{t-1} (1 - exp(-h_t)),
    which is alpha_{t-1} - a alpha_t, and c = h_t / (2 h_{t+1}), where h_t = lambda_{t-1} - lambda_t and
    lambda = log(alpha / sigma); alpha is the signal, sigma the noise. c is 0 at the first step, which has no step
    before it, and at the last one, whose h is infinite; also after a first step from noise alone, whose h is, too.
    """
    x_t = previous_noise / noise
    with np.errstate(divide="ignore"):
        h = -np.diff(np.log(signal / noise))
    extrapolation = np.zeros_like(signal)
    extrapolation[1:-1] = h[:-1] / (2 * h[1:])
    return {
        "dpmpp_2m_x_t": x_t,
        "dpmpp_2m_x_0": previous_signal - x_t * signal,
        "dpmpp_2m_extrapolation": extrapolation,
    }


def _loss_weight(signal: np.ndarray, noise: np.ndarray, config: DiffusionConfig) -> np.ndarray:
    """Weights of the squared error by `weighting` or min-SNR (Hang et al. 2023, section 3.4), float64 (steps,).

    An error of eps is signal / noise times, one of v 1 / noise times that of the x_0 that they stand for. Min-SNR
    weights the squared error of x_0 by min(SNR, gamma), SNR being (signal / noise)**2.
    """
    per_x_0 = {"eps": signal / noise, "x_0": np.ones_like(noise), "v": 1 / noise}
    if not config.min_snr_gamma:
        return np.minimum((per_x_0[config.weighting] / per_x_0[config.prediction]) ** 2, config.weight_limit)
    snr, gamma = (signal / noise) ** 2, config.min_snr_gamma
    if config.prediction == "eps":
        return np.minimum(1.0, gamma / snr)  # in this form also where next to no signal is left
    return np.minimum(snr, gamma) / per_x_0[config.prediction] ** 2
