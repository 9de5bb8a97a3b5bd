"""The few-shot diffusion model: a set encoder conditions a denoiser. It knows nothing of training runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vfs.core import contract
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.gaussian import standard_gaussian_kl_bits
from lightning_vfs.core.likelihood import BitsPerDim, bits_per_dim
from lightning_vfs.core.samplers import SamplerName, sample
from lightning_vfs.core.sets import complete, leave_one_out
from lightning_vfs.modules.context import GaussianContext
from lightning_vfs.modules.dit import DiT
from lightning_vfs.modules.noise import START, indexed_normal
from lightning_vfs.modules.set_encoder import SetEncoder

# Timestep t of the variational bound takes the noise stream _BOUND - t, clear of those of `modules.noise`.
_BOUND = -1000


class FewShotDiffusion(nn.Module):
    """Set encoder, denoiser and diffusion process: contexts, the loss, and generation from a support.

    Args:
        config: the model's configuration.
    """

    config: VFSConfig

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SetEncoder(config)
        self.denoiser = DiT(config)
        self.posterior = GaussianContext(config) if config.encoder.context == "variational" else None
        self.diffusion = GaussianDiffusion(config.diffusion)

    def context(self, x_set: Tensor, t: Tensor | None = None) -> Tensor:
        """Leave-one-out context of every image of every set, in one encoder call.

        Args:
            x_set: (b, n, c, h, w) in [-1, 1].
            t: int (b,), the timestep of every set; for encoders that see it.

        Returns:
            (b*n, d). With a variational context, what its posterior is made of.
        """
        n = x_set.shape[1]
        if self.config.sets.held_out == "none":
            return self.encoder(self._fill_slots(x_set), t).repeat_interleave(n, dim=0)
        others = rearrange(leave_one_out(x_set), "b n k c h w -> (b n) k c h w")
        return self.encoder(self._fill_slots(others), None if t is None else t.repeat_interleave(n))

    def _fill_slots(self, x_set: Tensor) -> Tensor:
        """Zero images in the slots that are left: (b, k, c, h, w) -> (b, s, c, h, w)."""
        return complete(x_set, self.config.sets.slots) if self.config.encoder.fills_slots else x_set

    def loss(self, x_set: Tensor, t: Tensor, noise: Tensor, latent_noise: Tensor | None = None) -> Tensor:
        """Training loss of a batch, a scalar.

        Args:
            x_set: (b, n, c, h, w) in [-1, 1].
            t: int64 (b,), one timestep per set.
            noise: standard normal, shaped like x_set.
            latent_noise: standard normal (b*n, d), for a variational context.
        """
        x_0, noise = x_set.flatten(0, 1), noise.flatten(0, 1)
        t_image = t.repeat_interleave(x_set.shape[1])
        context, kl = self.context(x_set, t), None
        if self.posterior is not None:
            mean, log_variance = self.posterior(context)
            kl = standard_gaussian_kl_bits(mean.float(), log_variance.float()).mean()
            context = mean + (0.5 * log_variance).exp() * latent_noise
        x_t = self.diffusion.q_sample(x_0, t_image, noise)
        model_output = self.denoiser(x_t, t_image, context).float()
        loss = self.diffusion.training_losses(model_output, x_0, x_t, t_image, noise, Tensor.detach).mean()
        return loss if kl is None else loss + self.config.encoder.kl_weight * kl

    # -- generation ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, support: Tensor, t: Tensor | None = None) -> Tensor:
        """Context that conditions generation.

        Args:
            support: (b, k, c, h, w) or (k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; a support smaller
                than that is completed with zero images.
            t: int (b,), for encoders that see the timestep.

        Returns:
            (b, d). With a variational context, its posterior's mean.

        Raises:
            SetSizeMismatchError: the support is empty or larger than the model takes.
            ValueError: another shape of images, or no t for an encoder that sees it.
        """
        if support.ndim == 4:
            support = support[None]
        contract.check_support(tuple(support.shape), self.config)
        with self._evaluating():
            context = self.encoder(self._fill_slots(support.to(self._where)), t)
            return context if self.posterior is None else self.posterior(context)[0]

    def generate(
        self,
        support: Tensor,
        index: Tensor,
        steps: int = 50,
        sampler: SamplerName = "ddim",
        eta: float = 0.0,
        seed: int = 0,
    ) -> Tensor:
        """One image per support; its noise depends on its global index and the seed alone.

        Args:
            support: (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`.
            index: int64 (b,), global sample indices.
            steps: timesteps of the process that are taken.
            sampler: `ddim` or `ddpm`.
            eta: of DDIM.
            seed: seed of the noise.

        Returns:
            (b, c, h, w) in [-1, 1].

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ConfigError: an unknown sampler, or steps or eta out of range.
        """
        index = index.to(self._where)
        return self._generate(self._contexts_of(support), torch.arange(len(index)), index, steps, sampler, eta, seed)

    def sample(
        self,
        support: Tensor,
        num_images: int = 16,
        steps: int = 50,
        sampler: SamplerName = "ddim",
        seed: int = 0,
        eta: float = 0.0,
        batch_size: int = 256,
    ) -> Tensor:
        """Images of the class that a support shows; the support is encoded once.

        Args:
            support: (k, c, h, w) or (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`.
            num_images: images per support.
            steps, sampler, seed, eta: as in `generate`.
            batch_size: images that are generated at a time; no effect on the images.

        Returns:
            (num_images, c, h, w), or (b, num_images, c, h, w) for a batch of supports, in [-1, 1].

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ConfigError: an unknown sampler, or steps or eta out of range.
        """
        if support.ndim == 4:
            return self.sample(support[None], num_images, steps, sampler, seed, eta, batch_size)[0]
        contexts = self._contexts_of(support)
        index = torch.arange(support.shape[0] * num_images, device=self._where)
        images = torch.cat(
            [
                self._generate(contexts, part // num_images, part, steps, sampler, eta, seed)
                for part in index.split(batch_size)
            ]
        )
        return rearrange(images, "(b m) c h w -> b m c h w", m=num_images)

    @torch.no_grad()
    def bits_per_dim(
        self, x_0: Tensor, support: Tensor, index: Tensor, steps: int | None = None, seed: int = 0
    ) -> BitsPerDim:
        """Variational bound of images given their supports, in bits per dimension (Nichol and Dhariwal 2021, eq. 4).

        The noise of an image at a timestep depends on its global index, the timestep and the seed alone. With a
        variational context the figure is that of its posterior's mean, and the context's own KL is not in it.

        Args:
            x_0: 8-bit images (b, c, h, w) scaled to [-1, 1].
            support: (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; without the image itself.
            index: int64 (b,), global indices of the images.
            steps: timesteps of the process that are taken; all by default. Fewer of them are another, coarser model.
            seed: seed of the noise.

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ConfigError: steps out of range.
            ValueError: images, supports and indices do not go together, or images of another shape than the model's.
        """
        if x_0.shape != (*support.shape[:1], *support.shape[2:]) or index.shape != x_0.shape[:1]:
            raise ValueError(
                "bits_per_dim takes images (b, c, h, w), their supports (b, k, c, h, w) and indices (b,); "
                f"got {tuple(x_0.shape)}, {tuple(support.shape)} and {tuple(index.shape)}."
            )
        process = self.diffusion.respaced(self.config.diffusion.timesteps if steps is None else steps)
        x_0, index, contexts = x_0.to(self._where), index.to(self._where), self._contexts_of(support)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return self.denoiser(x_t, t, contexts(t[0])).float()

        def noise(step: int) -> Tensor:
            return indexed_normal(index, tuple(x_0.shape[1:]), seed, _BOUND - int(process.timesteps[step]))

        with self._evaluating():
            return bits_per_dim(denoise, x_0, process, noise)

    def _contexts_of(self, support: Tensor) -> Callable[[Tensor], Tensor]:
        """Contexts of the supports at a timestep t (a scalar tensor); encoded once unless the encoder sees t."""
        if self.config.encoder.time_token == "timestep":
            return lambda t: self.encode(support, t.expand(support.shape[0]))
        contexts = self.encode(support)
        return lambda t: contexts

    @property
    def _where(self) -> torch.device:
        return self.encoder.cls_token.device

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout inside, and the mode as it was outside."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @torch.no_grad()
    def _generate(
        self,
        contexts: Callable[[Tensor], Tensor],
        support_of: Tensor,
        index: Tensor,
        steps: int,
        sampler: SamplerName,
        eta: float,
        seed: int,
    ) -> Tensor:
        """Images (m, c, h, w) of global indices (m,), each conditioned on the context of support `support_of` (m,)."""
        sets = self.config.sets
        noise = functools.partial(indexed_normal, index, (sets.channels, sets.image_size, sets.image_size), seed)
        support_of = support_of.to(self._where)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return self.denoiser(x_t, t, contexts(t[0])[support_of]).float()

        process = GaussianDiffusion(self.config.diffusion).respaced(steps)
        with self._evaluating():
            images = sample(denoise, noise(stream=START), process, sampler, eta, lambda step: noise(stream=step))
        return images.clamp(-1, 1)

    def forward(self, support: Tensor, num_images: int = 16) -> Tensor:
        """Images of the class that a support shows: `sample` with its defaults."""
        return self.sample(support, num_images)
