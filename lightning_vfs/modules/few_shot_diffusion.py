"""The few-shot diffusion model: a set encoder conditions a denoiser. It knows nothing of training runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vfs.core import requests
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.likelihood import BitsPerDim, bits_per_dim
from lightning_vfs.core.samplers import SamplerName
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.core.sets import complete, keep_first, leave_one_out, pool_tokens
from lightning_vfs.modules.context import ClassContext, DiscreteContext, GaussianContext
from lightning_vfs.modules.dit import DiT
from lightning_vfs.modules.generation import Conditioning, generate
from lightning_vfs.modules.latent import Autoencoder
from lightning_vfs.modules.noise import indexed_normal
from lightning_vfs.modules.set_encoder import SetEncoder, ViTEncoder
from lightning_vfs.modules.unet import UNet, UNetEncoder
from lightning_vfs.training.precision import at_least_float32

# Timestep t of the variational bound takes the noise stream VLB_STREAM - t, clear of those of `modules.noise`.
VLB_STREAM = -1000

ENCODERS: dict[str, type[nn.Module]] = {
    "set_vit": SetEncoder,
    "vit": ViTEncoder,
    "unet": UNetEncoder,
    "class_label": ClassContext,
}
DENOISERS: dict[str, type[nn.Module]] = {"dit": DiT, "unet": UNet}
POSTERIORS: dict[str, type[GaussianContext] | type[DiscreteContext]] = {
    "variational": GaussianContext,
    "variational_discrete": DiscreteContext,
}


class FewShotDiffusion(nn.Module):
    """Set encoder, denoiser and diffusion process: contexts, the loss, and generation from a support.

    Shapes of contexts: (b, d) for `film` conditioning, (b, tokens, d) for `lag`; there are none without an encoder.

    Args:
        config: the model's configuration.
    """

    config: VFSConfig

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        encoder = config.encoder
        self.config = config
        self.encoder = ENCODERS[encoder.architecture](config) if encoder.architecture in ENCODERS else None
        self.denoiser = DENOISERS[config.denoiser.architecture](config)
        self.posterior = POSTERIORS[encoder.context](config) if encoder.context in POSTERIORS else None
        self.null_context = nn.Parameter(torch.zeros(encoder.context_dim)) if encoder.context_dropout else None
        self.diffusion = GaussianDiffusion(config.diffusion)
        self._autoencoder: Autoencoder | None = None

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The frozen autoencoder in whose latents the model diffuses, loaded when first asked for; None in pixels.

        Raises:
            ConfigError: diffusers is not installed, or the autoencoder is another than the configuration says.
            CheckpointError: the folder is missing, damaged, or of another model.
        """
        if self._autoencoder is None and self.config.latent.autoencoder:
            self._autoencoder = Autoencoder(self.config.latent, self.config.sets.channels)
        return self._autoencoder

    def use_autoencoder(self, folder: str) -> None:
        """Take the autoencoder of another folder than the configuration says, as on another machine.

        Raises:
            ConfigError: a model of pixels, which has none.
        """
        latent = self.config.latent
        if not latent.autoencoder:
            raise ConfigError(f"This model diffuses pixels: it has no use for the autoencoder {folder}.")
        self.config = replace(self.config, latent=replace(latent, autoencoder=folder))
        self._autoencoder = None

    # -- contexts --------------------------------------------------------------------------------------------------

    def context(
        self,
        x_set: Tensor,
        t: Tensor | None = None,
        shots: Tensor | None = None,
        label: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Tensor | None:
        """Leave-one-out context of every image of every set, in one encoder call.

        Args:
            x_set: (b, n, c, h, w) in [-1, 1], or latents where the encoder sees them.
            t: int (b,), the timestep of every set; for encoders that see it.
            shots: int (b,), from how many of the images contexts are made; all by default.
            label: int64 (b,), the class of every set; for class-conditional models.
            key: int64 (b, n), a random number per image that dropout follows, in training.

        Returns:
            (b*n, d), or (b*n, tokens, d) for `lag`; None for an unconditional model. With a variational context, what
            its posterior is made of.

        Raises:
            ValueError: no label for a class-conditional model, no t for an encoder that sees it, or no key in training
                with dropout.
        """
        n = x_set.shape[1]
        if not self.config.encoder.takes_support:
            context = self._label_context(label)
            return None if context is None else context.repeat_interleave(n, dim=0)
        if self.config.sets.held_out == "none":
            of_sets = None if key is None else key[:, 0]
            return self._encode(x_set, t, shots, of_sets).repeat_interleave(n, dim=0)
        others = rearrange(leave_one_out(x_set), "b n k c h w -> (b n) k c h w")
        t, shots = (None if each is None else each.repeat_interleave(n) for each in (t, shots))
        return self._encode(others, t, shots, None if key is None else key.flatten())

    def _label_context(self, label: Tensor | None) -> Tensor | None:
        if self.encoder is None:
            return None
        if label is None:
            raise requests.missing_label(self.config)
        return self.encoder(label)

    def _encode(
        self, x_set: Tensor, t: Tensor | None, shots: Tensor | None = None, key: Tensor | None = None
    ) -> Tensor:
        """What the encoder makes of sets that may leave slots empty: (b, k, c, h, w) -> (b, d) or (b, tokens, d)."""
        assert self.encoder is not None
        if shots is not None:
            x_set = keep_first(x_set, shots)
        if self.config.encoder.fills_slots:
            x_set = complete(x_set, self.config.sets.slots)
        encoded = self.encoder(x_set, t, shots, key)
        groups = self.config.denoiser.context_tokens
        return pool_tokens(encoded, groups) if groups else encoded

    # -- training --------------------------------------------------------------------------------------------------

    def latents(self, x_set: Tensor) -> Tensor:
        """What is diffused: the sets themselves, or their latents, (b, n, c, h, w) both; without gradients."""
        if self.autoencoder is None:
            return x_set
        return self.autoencoder.encode(x_set.flatten(0, 1)).unflatten(0, x_set.shape[:2])

    def losses(
        self,
        x_set: Tensor,
        t: Tensor,
        noise: Tensor,
        latent_noise: Tensor | None = None,
        *,
        latents: Tensor | None = None,
        shots: Tensor | None = None,
        dropped: Tensor | None = None,
        label: Tensor | None = None,
        dropout_key: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Diffusion loss of every set, (b,), and the KL of its contexts, (b,), or None where there is none.

        Args:
            x_set: (b, n, c, h, w) in [-1, 1].
            t: int64 (b,), one timestep per set.
            noise: standard normal, shaped like what is diffused.
            latent_noise: for a variational context: standard normal (b*n, *config.encoded_shape), with a discrete one
                uniform in [0, 1), shaped like its logits: (b*n, ..., codebook_groups, codebook_size).
            latents: `latents(x_set)`, for models that diffuse them.
            shots, label: as in `context`.
            dropped: bool (b, n), images whose context is replaced by the null context.
            dropout_key: int64 (b, n, 2), random numbers that dropout in encoder and denoiser follows, in training.

        Raises:
            ValueError: no latent_noise for a variational context, no label for a class-conditional model, no t for an
                encoder that sees it, no dropout_key in training with dropout, or dropped images of a model without a
                null context.
        """
        if self.posterior is not None and latent_noise is None:
            raise ValueError("A variational context is drawn in training: give `latent_noise`.")
        if dropped is not None:
            requests.check_null_context(self.config)
        b, n = x_set.shape[:2]
        diffused = x_set if latents is None else latents
        seen = diffused if self.config.latent.encoder_input == "latents" else x_set
        encoder_key, denoiser_key = (None, None) if dropout_key is None else dropout_key.unbind(dim=-1)
        context, kl = self.context(seen, t, shots, label, encoder_key), None
        if self.posterior is not None and context is not None and latent_noise is not None:
            context, kl = self.posterior.draw(context, latent_noise)
        if self.null_context is not None and context is not None and dropped is not None:
            dropped = dropped.reshape(-1, *[1] * (context.ndim - 1))
            context = torch.where(dropped, self.null_context.to(context.dtype), context)
        x_0 = at_least_float32(diffused.flatten(0, 1))
        noise, t_image = noise.flatten(0, 1).to(x_0), t.repeat_interleave(n)
        x_t = self.diffusion.q_sample(x_0, t_image, noise)
        model_output = at_least_float32(
            self.denoiser(x_t, t_image, context, None if denoiser_key is None else denoiser_key.flatten())
        )
        losses = self.diffusion.training_losses(model_output, x_0, x_t, t_image, noise, Tensor.detach)
        return losses.reshape(b, n).mean(dim=1), None if kl is None else kl.reshape(b, n).mean(dim=1)

    def loss(
        self,
        x_set: Tensor,
        t: Tensor,
        noise: Tensor,
        latent_noise: Tensor | None = None,
        *,
        shots: Tensor | None = None,
        dropped: Tensor | None = None,
        label: Tensor | None = None,
        dropout_key: Tensor | None = None,
    ) -> Tensor:
        """Training loss of a batch, a scalar; arguments and errors as in `losses`."""
        latents = self.latents(x_set) if self.config.latent.autoencoder else None
        losses, kl = self.losses(
            x_set,
            t,
            noise,
            latent_noise,
            latents=latents,
            shots=shots,
            dropped=dropped,
            label=label,
            dropout_key=dropout_key,
        )
        return losses.mean() + (0 if kl is None else self.config.encoder.kl_weight * kl.mean())

    # -- generation ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, support: Tensor, t: Tensor | None = None) -> Tensor:
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
        return self._encode_support(support[None] if support.ndim == 4 else support, t)

    def _encode_support(self, support: Tensor, t: Tensor | None = None) -> Tensor:
        requests.check_support(tuple(support.shape), self.config)
        support = support.to(self._weights_device)
        with self._evaluating():
            seen = self.latents(support) if self.config.latent.encoder_input == "latents" else support
            context = self._encode(seen, t)
            return context if self.posterior is None else self.posterior.mode(context)

    def generate(
        self,
        support: Tensor | None,
        index: Tensor,
        steps: int = 50,
        sampler: SamplerName = "ddim",
        eta: float = 0.0,
        seed: int = 0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[int, int] | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """One image per support; its noise depends on its global index and the seed alone.

        Args:
            support: (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; None for the baselines without one.
            index: int64 (b,), global sample indices.
            steps: timesteps of the process that are taken.
            sampler: `ddim`, `ddpm` or `dpmpp_2m`.
            eta: of DDIM.
            seed: seed of the noise.
            guidance_scale: of classifier-free guidance; 1 is none. Other values need a model that was trained with
                `encoder.context_dropout`.
            guidance_interval: timesteps t of the full process, low <= t < high, that are guided; all by default.
            label: int64 (b,), training classes, for class-conditional models.

        Returns:
            (b, c, h, w) in [-1, 1].

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ConfigError: an unknown sampler, an option out of range, or guidance without a null context.
            ValueError: a support, or no support, for a model that takes none, or one; the same of labels.
        """
        sampling = SamplingConfig(steps, sampler, eta, guidance_scale, guidance_interval)
        index = index.to(self._weights_device)
        return self._generate(self._guide(support, label, sampling), torch.arange(len(index)), index, sampling, seed)

    def sample(
        self,
        support: Tensor | None = None,
        num_images: int = 16,
        steps: int = 50,
        sampler: SamplerName = "ddim",
        seed: int = 0,
        eta: float = 0.0,
        batch_size: int = 256,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[int, int] | None = None,
        label: int | Tensor | None = None,
    ) -> Tensor:
        """Images of the class that a support shows; the support is encoded once.

        Args:
            support: (k, c, h, w) or (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; None for the baselines
                without one.
            num_images: images per support.
            steps, sampler, seed, eta, guidance_scale, guidance_interval: as in `generate`.
            batch_size: images that are generated at a time; no effect on the images.
            label: a training class or int64 (b,) of them, for class-conditional models.

        Returns:
            (num_images, c, h, w), or (b, num_images, c, h, w) for a batch of supports or labels, in [-1, 1].

        Raises:
            SetSizeMismatchError, ConfigError, ValueError: as in `generate`.
        """
        sampling = SamplingConfig(steps, sampler, eta, guidance_scale, guidance_interval)
        batched = label.ndim == 1 if isinstance(label, Tensor) else support is not None and support.ndim == 5
        supports = support[None] if support is not None and support.ndim == 4 else support
        labels = None if label is None else torch.as_tensor(label).reshape(-1)
        count = 1 if supports is None and labels is None else len(labels if supports is None else supports)  # type: ignore[arg-type]
        guide = self._guide(supports, labels, sampling)
        index = torch.arange(count * num_images, device=self._weights_device)
        images = torch.cat(
            [self._generate(guide, part // num_images, part, sampling, seed) for part in index.split(batch_size)]
        )
        images = rearrange(images, "(b m) c h w -> b m c h w", m=num_images)
        return images if batched else images[0]

    def _generate(
        self, guide: Conditioning, context_index: Tensor, index: Tensor, sampling: SamplingConfig, seed: int
    ) -> Tensor:
        """Images of global indices (m,), each conditioned on the context `context_index` (m,)."""
        config = self.config
        shape = (config.denoiser_channels, config.denoiser_size, config.denoiser_size)
        with self._evaluating():
            x_0 = generate(
                self.denoiser,
                GaussianDiffusion(config.diffusion),
                guide,
                context_index.to(index.device),
                index,
                shape,
                sampling,
                seed,
            )
        return x_0.clamp(-1, 1) if self.autoencoder is None else self.autoencoder.decode(x_0)

    @torch.no_grad()
    def bits_per_dim(
        self,
        x_0: Tensor,
        support: Tensor | None,
        index: Tensor,
        steps: int | None = None,
        seed: int = 0,
        label: Tensor | None = None,
    ) -> BitsPerDim:
        """Variational bound of images given their supports, in bits per dimension (Nichol and Dhariwal 2021, eq. 4).

        The noise of an image at a timestep depends on its global index, the timestep and the seed alone. With a
        variational context the figure is that of its posterior's mode, and the context's own KL is not in it.

        Args:
            x_0: 8-bit images (b, c, h, w) scaled to [-1, 1].
            support: (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; without the image itself. None for
                the baselines without one.
            index: int64 (b,), global indices of the images.
            steps: timesteps of the process that are taken; all by default. Fewer of them are another, coarser model.
            seed: seed of the noise.
            label: int64 (b,), training classes, for class-conditional models.

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ConfigError: steps out of range, or a model of latents, whose bound says nothing of pixels.
            ValueError: images, supports and indices do not go together, or images of another shape than the model's.
        """
        if self.config.latent.autoencoder:
            raise ConfigError(
                "The variational bound of a model of latents is not one of 8-bit images: it has no bits per dimension. "
                "Leave it out (vlb_images 0)."
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
        guide = self._guide(support, label, SamplingConfig())

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return at_least_float32(self.denoiser(x_t, t, guide.contexts(t[0])))

        def noise(step: int) -> Tensor:
            return indexed_normal(index, tuple(x_0.shape[1:]), seed, VLB_STREAM - int(process.timesteps[step]))

        with self._evaluating():
            return bits_per_dim(denoise, x_0, process, noise)

    def _guide(self, support: Tensor | None, label: Tensor | None, sampling: SamplingConfig) -> Conditioning:
        """What conditions generation; encoded once unless the encoder sees t."""
        requests.check_guidance(sampling, self.config)
        if self.config.encoder.takes_support:
            if support is None or label is not None:
                raise ValueError(
                    "This model is conditioned on a support (b, k, c, h, w) and on nothing else: give it one."
                )
            if self.config.encoder.time_token == "timestep":
                support = support.to(self._weights_device)  # once, not at every step
                return Conditioning(
                    lambda t: self._encode_support(support, t.expand(support.shape[0])), self.null_context
                )
            context: Tensor | None = self._encode_support(support)
        else:
            if support is not None:
                requests.check_support(tuple(support.shape), self.config)
            if label is not None:
                requests.check_labels(label.tolist(), self.config)
                label = label.to(self._weights_device)
            context = self._label_context(label)
        return Conditioning(lambda t: context, self.null_context)

    @property
    def _weights_device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout inside, and the mode as it was outside."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def forward(self, support: Tensor | None = None, num_images: int = 16) -> Tensor:
        """Images of the class that a support shows: `sample` with its defaults."""
        return self.sample(support, num_images)
