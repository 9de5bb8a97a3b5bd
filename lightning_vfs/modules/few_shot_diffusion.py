"""The networks of a few-shot diffusion model, the contexts that a set encoder makes, and the loss."""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from lightning_vfs.core import requests
from lightning_vfs.core.checks import choose
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.sets import complete, keep_first, leave_one_out, pool_tokens, seen_images
from lightning_vfs.modules.context import ClassContext, DiscreteContext, GaussianContext
from lightning_vfs.modules.dit import DiT
from lightning_vfs.modules.latent import Autoencoder
from lightning_vfs.modules.set_context import SetContext
from lightning_vfs.modules.set_encoder import SetEncoder, SetTokens, ViTEncoder
from lightning_vfs.modules.unet import UNet, UNetEncoder
from lightning_vfs.training.precision import at_least_float32

ENCODERS: dict[str, type[nn.Module]] = {
    "set_vit": SetEncoder,
    "vit": ViTEncoder,
    "set_tokens": SetTokens,
    "unet": UNetEncoder,
    "class_label": ClassContext,
}
DENOISERS: dict[str, type[nn.Module]] = {"dit": DiT, "unet": UNet}
POSTERIORS: dict[str, type[GaussianContext] | type[DiscreteContext]] = {
    "variational": GaussianContext,
    "variational_discrete": DiscreteContext,
}


class FewShotDiffusion(nn.Module):
    """Set encoder, denoiser and diffusion process: contexts and the loss.

    Shapes of contexts: (b, d) for `film` conditioning, (b, tokens, d) for `lag`; there are none without an encoder.

    Args:
        config: the model's configuration.
    """

    config: VFSConfig

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        encoder = config.encoder
        self.config = config
        self.encoder = None if encoder.condition is None else choose(encoder.architecture, ENCODERS)(config)
        self.denoiser = choose(config.denoiser.architecture, DENOISERS)(config)
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
        x_set: Float[Tensor, "b n c h w"],
        t: Num[Tensor, " b"] | None = None,
        shots: Int[Tensor, " b"] | None = None,
        label: Int[Tensor, " b"] | None = None,
        key: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, " b*n *context"] | None:
        """Leave-one-out context of every image of every set, in one encoder call.

        Args:
            x_set: (b, n, c, h, w) in [-1, 1], or latents where the encoder sees them.
            t: int (b,), the timestep of every set; for encoders that see it.
            shots: int (b,), from how many of the images contexts are made; all by default.
            label: int64 (b,), the class of every set; for class-conditional models.
            key: int64 (b, n), a random number per image that dropout follows, in training.

        Returns:
            (b*n, d), or (b*n, tokens, d) for `lag`; None for an unconditional model. With a variational context, what
            its posterior is made of. Of `set_tokens` with `lag`, the tokens of every image itself, of which `losses`
            lets each image see those of the others.

        Raises:
            ValueError: no label for a class-conditional model, no t for an encoder that sees it, or no key in training
                with dropout.
        """
        n = x_set.shape[1]
        if self.config.encoder.condition != "support":
            context = self._label_context(label)
            return None if context is None else context.repeat_interleave(n, dim=0)
        if self.config.encoder.encodes_each:
            return self._encode_each(x_set, t, shots, key)
        if self.config.sets.held_out == "none":
            of_sets = None if key is None else key[:, 0]
            return self._encode(x_set, t, shots, of_sets).repeat_interleave(n, dim=0)
        others = rearrange(leave_one_out(x_set), "b n k c h w -> (b n) k c h w")
        t, shots = (None if each is None else each.repeat_interleave(n) for each in (t, shots))
        return self._encode(others, t, shots, None if key is None else key.flatten())

    def _encode_each(self, x_set: Tensor, t: Tensor | None, shots: Tensor | None, key: Tensor | None) -> Tensor:
        """Each image encoded once: (b, n, c, h, w) -> (b*n, d) of those it is conditioned on, or (b*n, tokens, d)."""
        assert self.encoder is not None
        if self.config.denoiser.conditioning == "lag":
            return rearrange(self._encode(x_set, t, None, key), "b (n l) d -> (b n) l d", n=x_set.shape[1])
        return self.encoder(x_set, t, self._seen(x_set, shots), key)

    def _seen(self, x_set: Tensor, shots: Tensor | None) -> Tensor:
        """Which images of a set each of its images is conditioned on: bool (b or 1, n, n)."""
        return seen_images(x_set, self.config.sets.held_out != "none", shots)

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
        groups = self.config.denoiser.context_tokens * (x_set.shape[1] if self.config.encoder.encodes_each else 1)
        return pool_tokens(encoded, groups) if groups else encoded

    # -- training --------------------------------------------------------------------------------------------------

    def latents(self, x_set: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b n _ _ _"]:
        """What is diffused: the sets themselves, or their latents, (b, n, c, h, w) both; without gradients."""
        if self.autoencoder is None:
            return x_set
        return self.autoencoder.encode(x_set.flatten(0, 1)).unflatten(0, x_set.shape[:2])

    def losses(
        self,
        x_set: Float[Tensor, "b n c h w"],
        t: Int[Tensor, " b"],
        noise: Float[Tensor, "b n *diffused"],
        latent_noise: Float[Tensor, " b*n *posterior"] | None = None,
        *,
        latents: Float[Tensor, "b n *diffused"] | None = None,
        shots: Int[Tensor, " b"] | None = None,
        dropped: Bool[Tensor, "b n"] | None = None,
        label: Int[Tensor, " b"] | None = None,
        dropout_key: Int[Tensor, "b n 2"] | None = None,
        negative: tuple[Float[Tensor, "b n *diffused"], Float[Tensor, "b n *diffused"]] | None = None,
        bound_weight: Float[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"] | None]:
        """Diffusion loss of every set, (b,), and the KL of its contexts, (b,), or None where there is none.

        Args:
            x_set: (b, n, c, h, w) in [-1, 1].
            t: int64 (b,), one timestep per set.
            noise: standard normal, shaped like what is diffused.
            latent_noise: for a variational context: standard normal (b*n, *config.encoded_shape), with a discrete one
                uniform in [0, 1), shaped like its logits: (b*n, ..., codebook_groups, codebook_size).
            latents: `latents(x_set)`, for models that diffuse them.
            shots: as in `context`.
            label: as in `context`.
            dropped: bool (b, n), images whose context is replaced by the null context.
            dropout_key: int64 (b, n, 2), random numbers that dropout in encoder and denoiser follows, in training.
            negative: for `contrastive_weight`: what is diffused of another set in place of each, and its noise, both
                shaped like `noise`. Images whose context is dropped are not pushed away from it.
            bound_weight: of the variational bound of every set, where timesteps are not drawn alike.

        Raises:
            ValueError: no latent_noise for a variational context, no label for a class-conditional model, no t for an
                encoder that sees it, no dropout_key in training with dropout, or dropped images of a model without a
                null context.
        """
        if self.posterior is not None and latent_noise is None:
            raise requests.missing_latent_noise()
        if dropped is not None:
            requests.check_null_context(self.config)
        b, n = x_set.shape[:2]
        diffused = x_set if latents is None else latents
        seen = diffused if self.config.latent.encoder_input == "latents" else x_set
        encoder_key, denoiser_key = (None, None) if dropout_key is None else dropout_key.unbind(dim=-1)
        context, kl = self.context(seen, t, shots, label, encoder_key), None
        if self.posterior is not None and context is not None and latent_noise is not None:
            context, kl = self.posterior.draw(context, latent_noise)
        condition = None if context is None else self._condition(context, x_set, shots, dropped)
        x_0 = at_least_float32(diffused.flatten(0, 1))
        noise, t_image = noise.flatten(0, 1).to(x_0), t.repeat_interleave(n)
        x_t = self.diffusion.q_sample(x_0, t_image, noise)
        model_output = at_least_float32(
            self.denoiser(x_t, t_image, condition, None if denoiser_key is None else denoiser_key.flatten())
        )
        losses = self.diffusion.training_losses(
            model_output,
            x_0,
            x_t,
            t_image,
            noise,
            Tensor.detach,
            negative=None if negative is None else self._target(negative, t_image),
            contrast=None if dropped is None else (~dropped).flatten().to(x_0.dtype),
            bound_weight=None if bound_weight is None else bound_weight.repeat_interleave(n),
        )
        return losses.reshape(b, n).mean(dim=1), None if kl is None else kl.reshape(b, n).mean(dim=1)

    def _target(self, images_and_noise: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
        """What the denoiser would be trained to predict of other images, (b, n, c, h, w) each: (b*n, c, h, w)."""
        x_0, noise = (at_least_float32(each.flatten(0, 1)) for each in images_and_noise)
        return self.diffusion.target(x_0, t, noise.to(x_0))

    def _condition(
        self, context: Tensor, x_set: Tensor, shots: Tensor | None, dropped: Tensor | None
    ) -> Tensor | SetContext:
        """What the denoiser is given: contexts of every image or what a set shares, null contexts where dropped."""
        if self.config.encoder.encodes_each and self.config.denoiser.conditioning == "lag":
            return SetContext.of_images(context, self._seen(x_set, shots), self.null_context, dropped)
        if self.null_context is None or dropped is None:
            return context
        dropped = dropped.reshape(-1, *[1] * (context.ndim - 1))
        return torch.where(dropped, self.null_context.to(context.dtype), context)

    def loss(
        self,
        x_set: Float[Tensor, "b n c h w"],
        t: Int[Tensor, " b"],
        noise: Float[Tensor, "b n *diffused"],
        latent_noise: Float[Tensor, " b*n *posterior"] | None = None,
        *,
        shots: Int[Tensor, " b"] | None = None,
        dropped: Bool[Tensor, "b n"] | None = None,
        label: Int[Tensor, " b"] | None = None,
        dropout_key: Int[Tensor, "b n 2"] | None = None,
        negative: tuple[Float[Tensor, "b n *diffused"], Float[Tensor, "b n *diffused"]] | None = None,
        bound_weight: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, ""]:
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
            negative=negative,
            bound_weight=bound_weight,
        )
        return losses.mean() + (0 if kl is None else self.config.encoder.kl_weight * kl.mean())
