"""Generation: images of the class that a support shows, and their likelihood."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int, Num
from torch import Tensor

from lightning_vfs.core import samplers
from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.guidance import guided
from lightning_vfs.core.likelihood import BitsPerDim, bits_per_dim
from lightning_vfs.core.requests import Condition, check_guidance, check_support
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.data.folders import draw_support, load_support, support_files
from lightning_vfs.modules.few_shot_diffusion import FewShotDiffusion
from lightning_vfs.modules.noise import START, indexed_normal
from lightning_vfs.training.precision import at_least_float32

# Timestep t of the variational bound takes the noise stream VLB_STREAM - t, clear of those of `modules.noise`.
VLB_STREAM = -1000


OnStep = Callable[[int, Tensor], None]
"""(steps that are left, predicted images (m, c, h, w) in [-1, 1]), called after every step of a sampler."""


class Conditioning(NamedTuple):
    """What conditions generation.

    Attributes:
        contexts: t (a scalar tensor) -> the contexts (b, ...) at that timestep, or None without conditioning.
        null_context: (d,), what replaces a context for classifier-free guidance, if the model has one.
    """

    contexts: Callable[[Tensor], Tensor | None]
    null_context: Tensor | None


class FewShotGenerator(FewShotDiffusion):
    """A few-shot diffusion model that encodes supports, and generates images from them."""

    def load_support(
        self, paths_or_folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], seed: int = 0
    ) -> Float[Tensor, "k c h w"]:
        """Images that condition a generation, as this model takes them.

        Args:
            paths_or_folder: image files, or the folder of one class.
            seed: draws `config.sets.shots` images, from more than the model takes.

        Returns:
            float32 (k, c, h, w) in [-1, 1], for `sample`, on the CPU.

        Raises:
            DataError: there is no such file or folder, no image in it, or one that cannot be read.
        """
        sets, files = self.config.sets, support_files(paths_or_folder)
        if self.config.encoder.fills_slots:
            files = draw_support(files, sets.shots, seed)
        return load_support(files, sets.image_size, sets.channels)

    @torch.no_grad()
    def encode(
        self, support: Float[Tensor, "*supports c h w"], t: Num[Tensor, " b"] | None = None
    ) -> Float[Tensor, " b *context"]:
        """Context that conditions generation.

        Args:
            support: (b, k, c, h, w) or (k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; in a support smaller
                than that zero images fill the slots of encoders that have slots.
            t: int (b,), for encoders that see the timestep.

        Returns:
            (b, d), or (b, tokens, d) for `lag`. With a variational context its posterior's mean, with a discrete one
            the most likely codes.

        Raises:
            SetSizeMismatchError: the support is empty or larger than the model takes.
            ValueError: another shape of images, no t for an encoder that sees it, or a model that takes no support.
        """
        support = support[None] if support.ndim == 4 else support
        check_support(tuple(support.shape), self.config)
        return self._encode_support(support, t)

    def _encode_support(self, support: Tensor, t: Tensor | None = None) -> Tensor:
        support = support.to(self._weights_device)
        with self._evaluating():
            seen = self.latents(support) if self.config.latent.encoder_input == "latents" else support
            context = self._encode(seen, t)
            return context if self.posterior is None else self.posterior.mode(context)

    @torch.no_grad()
    def generate(
        self,
        support: Float[Tensor, "b k c h w"] | None,
        index: Int[Tensor, " b"],
        sampling: SamplingConfig = SamplingConfig(),
        *,
        seed: int = 0,
        label: Int[Tensor, " b"] | None = None,
        **options: Any,
    ) -> Float[Tensor, "b c h w"]:
        """One image for each condition; its noise depends only on its global index and the seed.

        Args:
            support: (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; None for the baselines without one.
            index: int64 (b,), global sample indices.
            sampling: how images are drawn.
            seed: seed of the noise.
            label: int64 (b,), training classes, for class-conditional models.
            **options: fields of `sampling` to replace, such as `steps=20`.

        Returns:
            (b, c, h, w) in [-1, 1].

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ConfigError: an unknown sampler, an option out of range, or guidance without a null context.
            ValueError: a support or label that the model does not take, or one that it needs and does not get.
        """
        sampling = replace(sampling, **options)
        index = index.to(self._weights_device)
        conditioning = self._conditioning(Condition(support, label), sampling)
        return self._generate(conditioning, torch.arange(len(index)), index, sampling, seed)

    @torch.no_grad()
    def sample(
        self,
        support: Float[Tensor, "*supports c h w"] | None = None,
        num_images: int = 16,
        sampling: SamplingConfig = SamplingConfig(),
        *,
        seed: int = 0,
        batch_size: int = 256,
        label: int | Int[Tensor, "*labels"] | None = None,
        **options: Any,
    ) -> Float[Tensor, "*images c h w"]:
        """Images of the class that a support shows; the support is encoded once.

        Args:
            support: (k, c, h, w) or (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; None for the baselines
                without one.
            num_images: images per support.
            sampling: how images are drawn.
            seed: seed of the noise.
            batch_size: images that are generated at a time; no effect on the images.
            label: a training class or int64 (b,) of them, for class-conditional models.
            **options: fields of `sampling` to replace, such as `steps=20, sampler="ddpm", guidance_scale=2.0`.

        Returns:
            (num_images, c, h, w), or (b, num_images, c, h, w) for a batch of supports or labels, in [-1, 1].

        Raises:
            SetSizeMismatchError, ConfigError, ValueError: as in `generate`.
        """
        how: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "label": label}
        images = torch.cat(list(self.sample_batches(support, num_images, sampling, **how, **options)))
        batched = label.ndim == 1 if isinstance(label, Tensor) else support is not None and support.ndim == 5
        return rearrange(images, "(b m) c h w -> b m c h w", m=num_images) if batched else images

    @torch.no_grad()
    def sample_batches(
        self,
        support: Float[Tensor, "*supports c h w"] | None = None,
        num_images: int = 16,
        sampling: SamplingConfig = SamplingConfig(),
        *,
        seed: int = 0,
        batch_size: int = 256,
        label: int | Int[Tensor, "*labels"] | None = None,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> Iterator[Tensor]:
        """The images of `sample`, in batches as they are generated, for more than memory holds at once.

        Args, Raises: as in `sample`; `on_step` is called after every step of every batch with the steps that are left
        and the images as the model predicts them then, which it may show. What it raises ends the generation.

        Yields:
            (m, c, h, w) in [-1, 1], m = `batch_size`, or fewer at the end: all images of the first support or label,
            then those of the second.
        """
        check_whole_number("num_images", num_images, 1)
        check_whole_number("batch_size", batch_size, 1)
        sampling = replace(sampling, **options)
        condition = Condition(
            support[None] if support is not None and support.ndim == 4 else support,
            None if label is None else torch.as_tensor(label).reshape(-1),
        )
        conditioning = self._conditioning(condition, sampling)
        index = torch.arange(condition.size * num_images, device=self._weights_device)
        for part in index.split(batch_size):
            yield self._generate(conditioning, part // num_images, part, sampling, seed, on_step)

    def _conditioning(self, condition: Condition, sampling: SamplingConfig = SamplingConfig()) -> Conditioning:
        """What conditions generation; encoded once unless the encoder sees t."""
        check_guidance(sampling, self.config)
        condition.check(self.config)
        support, label = (None if given is None else given.to(self._weights_device) for given in condition)
        if support is not None and self.config.encoder.time_token == "timestep":
            return Conditioning(lambda t: self._encode_support(support, t.expand(len(support))), self.null_context)
        context = self._label_context(label) if support is None else self._encode_support(support)
        return Conditioning(lambda t: context, self.null_context)

    def _generate(
        self,
        conditioning: Conditioning,
        context_index: Tensor,
        index: Tensor,
        sampling: SamplingConfig,
        seed: int,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Images of global indices (m,), each conditioned on the context `context_index` (m,).

        Raises:
            ConfigError: more steps than the process has.
        """
        config, context_index = self.config, context_index.to(index.device)
        shape = (config.denoiser_channels, config.denoiser_size, config.denoiser_size)
        process = GaussianDiffusion(config.diffusion).respaced(sampling.steps)
        scales = sampling.guidance_scales(process.timesteps).tolist()
        noise = partial(indexed_normal, index, shape, seed)

        def denoise(x_t: Tensor, t: Tensor, step: int) -> Tensor:
            contexts = conditioning.contexts(t[0])
            if contexts is None:
                return at_least_float32(self.denoiser(x_t, t, None))
            context = contexts[context_index]
            if scales[step] == 1 or conditioning.null_context is None:
                return at_least_float32(self.denoiser(x_t, t, context))
            both = torch.cat([context, conditioning.null_context.expand_as(context)])
            outputs = at_least_float32(self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both))
            conditional, unconditional = outputs.chunk(2)
            return guided(conditional, unconditional, scales[step], shape[0])

        def pixels(x_0: Tensor) -> Tensor:
            return x_0.clamp(-1, 1) if self.autoencoder is None else self.autoencoder.decode(x_0)

        def watched(x_t: Tensor, t: Tensor, step: int) -> Tensor:
            output = denoise(x_t, t, step)
            if on_step is not None:
                steps = torch.full((len(x_t),), step, device=x_t.device)
                on_step(step, pixels(process.on(x_t).p_mean_variance(output, x_t, steps).pred_x_0))
            return output

        with self._evaluating():
            x_0 = samplers.sample(
                watched, noise(stream=START), process, sampling.sampler, sampling.eta, lambda step: noise(stream=step)
            )
        return pixels(x_0)

    @torch.no_grad()
    def bits_per_dim(
        self,
        x_0: Float[Tensor, "b c h w"],
        support: Float[Tensor, "b k c h w"] | None,
        index: Int[Tensor, " b"],
        steps: int | None = None,
        seed: int = 0,
        label: Int[Tensor, " b"] | None = None,
    ) -> BitsPerDim:
        """Variational bound of images given their supports, in bits per dimension (Nichol and Dhariwal 2021, eq. 4).

        The noise of an image at a timestep depends only on its global index, the timestep and the seed. With a
        variational context the figure is that of its posterior's mode, and the context's own KL is not in it.

        Args:
            x_0: 8-bit images (b, c, h, w) scaled to [-1, 1].
            support: (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; without the image itself. None for
                the baselines without one.
            index: int64 (b,), global indices of the images.
            steps: timesteps of the process that are taken; all by default. Fewer give a different, coarser model.
            seed: seed of the noise.
            label: int64 (b,), training classes, for class-conditional models.

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ConfigError: steps out of range, or a model of latents, whose bound says nothing of pixels.
            ValueError: images, supports and indices do not go together, or images of another shape than the model's.
        """
        if self.config.latent.autoencoder:
            raise ConfigError(
                "The variational bound of a model of latents says nothing about 8-bit images, so there are no bits per "
                "dimension. Leave it out (vlb_images 0)."
            )
        if index.shape != x_0.shape[:1] or (
            support is not None and x_0.shape != (*support.shape[:1], *support.shape[2:])
        ):
            raise ValueError(
                "bits_per_dim takes images (b, c, h, w), their supports (b, k, c, h, w) and indices (b,); "
                f"got {tuple(x_0.shape)}, {None if support is None else tuple(support.shape)} and {tuple(index.shape)}."
            )
        process = self.diffusion.respaced(self.config.diffusion.timesteps if steps is None else steps)
        x_0, index = x_0.to(self._weights_device), index.to(self._weights_device)
        conditioning = self._conditioning(Condition(support, label))

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return at_least_float32(self.denoiser(x_t, t, conditioning.contexts(t[0])))

        def noise(step: int) -> Tensor:
            return indexed_normal(index, tuple(x_0.shape[1:]), seed, VLB_STREAM - int(process.timesteps[step]))

        with self._evaluating():
            return bits_per_dim(denoise, x_0, process, noise)

    @property
    def _weights_device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout inside; the previous mode is restored afterwards."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def forward(self, support: Tensor | None = None, num_images: int = 16) -> Tensor:
        """Images of the class that a support shows: `sample` with its defaults."""
        return self.sample(support, num_images)
