"""FlaxVFSDDPM: the few-shot diffusion model in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lightning_vfs.core import requests
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.core.sampling_config import SamplerName, SamplingConfig
from lightning_vfs.flax import generation
from lightning_vfs.flax.networks import Networks, Params
from lightning_vfs.flax.noise import uint64
from lightning_vfs.flax.pretrained import load_pretrained
from lightning_vfs.interop.jax_parameters import to_jax_params, wrong_leaves

if TYPE_CHECKING:
    from lightning_vfs.modules import FewShotDiffusion


@dataclass(frozen=True, eq=False)
class FlaxVFSDDPM:
    """Few-shot diffusion model in JAX: the torch model's configuration, and its weights as a tree for linen modules.

    Images are (c, h, w) in [-1, 1]. Contexts are (b, d) for `film` conditioning, (b, tokens, d) for `lag`, and
    None without an encoder. On accelerators, whose matrix products round by default, set
    `jax.default_matmul_precision("float32")` for the torch model's images.

    Args:
        config: the model's configuration.
        params: nested dict of arrays, `{"encoder": {"params": ...}, "dit": {"params": ...}, ...}`.

    Raises:
        CheckpointError: parameters are missing, extra or misshaped; all of them are named.
        ConfigError: a model of latents.
    """

    config: VFSConfig
    params: Params

    def __post_init__(self) -> None:
        if self.config.latent.autoencoder:
            raise ConfigError(
                f"This model diffuses the latents of an autoencoder ({self.config.latent.autoencoder}), which there is "
                "none of in JAX: sample it in torch, VFSDDPM.sample or `lightning-vfs sample --framework torch`."
            )
        leaves: dict[str, Any] = flatten_dict(self.params, sep="/")
        # A copy of what is not in JAX yet: of a NumPy array JAX may take the memory itself.
        leaves = {path: leaf if isinstance(leaf, jax.Array) else jnp.array(leaf) for path, leaf in leaves.items()}
        wrong = wrong_leaves(leaves, self.networks.shapes(), self.config)
        if wrong:
            raise CheckpointError("The parameters do not fit the configuration:\n  " + "\n  ".join(wrong))
        object.__setattr__(self, "params", unflatten_dict(leaves, sep="/"))

    @classmethod
    def from_torch(cls, model: FewShotDiffusion) -> FlaxVFSDDPM:
        """The twin of a torch model, with the weights that it holds now."""
        state_dict = {name: tensor.detach().cpu().float().numpy() for name, tensor in model.state_dict().items()}
        return cls(model.config, unflatten_dict(to_jax_params(state_dict, model.config), sep="/"))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> FlaxVFSDDPM:
        """Model of a folder as `VFSDDPM.save_pretrained` writes it, or of a Hugging Face hub id.

        Warns:
            StaleSetSizeWarning: the configuration states another set size than the weights, whose is taken.

        Raises:
            CheckpointError: there is no such folder, or its files are no model of ours.
        """
        config, leaves = load_pretrained(name)
        return cls(config, unflatten_dict(leaves, sep="/"))

    @cached_property
    def networks(self) -> Networks:
        """The networks as functions of parameters; a static argument for `jax.jit`."""
        return Networks(self.config)

    @cached_property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion process over all timesteps."""
        return GaussianDiffusion(self.config.diffusion)

    def context(
        self,
        x_set: jax.Array,
        t: jax.Array | None = None,
        shots: jax.Array | None = None,
        label: jax.Array | None = None,
    ) -> jax.Array | None:
        """Leave-one-out context of every image of every set, in one encoder call.

        Args:
            x_set: (b, n, c, h, w) in [-1, 1].
            t: int (b,), the timestep of every set; for encoders that see it.
            shots: int (b,), from how many of the images contexts are made; all by default.
            label: int (b,), the class of every set; for class-conditional models.

        Returns:
            (b*n, d), or (b*n, tokens, d) for `lag`; None for an unconditional model. With a variational context, what
            its posterior is made of.

        Raises:
            ValueError: no label for a class-conditional model, or no t for an encoder that sees it.
        """
        return self.networks.context(self.params, jnp.asarray(x_set), t, shots=shots, label=label)

    def posterior(self, context: jax.Array) -> Any:
        """Of a Gaussian context mean and log-variance, (b, ..., dim) each; of a discrete one its codes' logits.

        Raises:
            ConfigError: the context is deterministic.
        """
        if not self.networks.is_random:
            raise ConfigError("EncoderConfig.context is 'deterministic': only a variational one has a posterior.")
        return self.networks.posterior(self.params, context)

    def denoiser(self, x_t: jax.Array, t: jax.Array, context: jax.Array | None) -> jax.Array:
        """The denoiser's output: x_t (b, c, h, w), t int (b,), context (b, ...) -> (b, c or 2c, h, w)."""
        return self.networks.denoise(self.params, jnp.asarray(x_t), jnp.asarray(t), context)

    def loss(
        self,
        params: Params,
        x_set: jax.Array,
        t: jax.Array,
        noise: jax.Array,
        latent_noise: jax.Array | None = None,
        dropout_rng: jax.Array | None = None,
        *,
        shots: jax.Array | None = None,
        dropped: jax.Array | None = None,
        label: jax.Array | None = None,
    ) -> jax.Array:
        """Training loss of a batch, a scalar: a pure function of its arguments, for `jax.grad` and `jax.jit`.

        Args:
            params: in place of the model's own.
            x_set: (b, n, c, h, w) in [-1, 1].
            t: int (b,), one timestep per set.
            noise: standard normal, shaped like x_set.
            latent_noise: for a variational context: standard normal (b*n, *config.encoded_shape), with a discrete one
                uniform in [0, 1), shaped like its logits: (b*n, ..., codebook_groups, codebook_size).
            dropout_rng: key of the dropout; without one nothing is dropped.
            shots: as in `context`.
            label: as in `context`.
            dropped: bool (b, n), images whose context is replaced by the null context.

        Raises:
            ValueError: no latent_noise for a variational context, no label for a class-conditional model, or dropped
                images of a model without a null context.
        """
        if dropped is not None:
            requests.check_null_context(self.config)
        encoder_rng, denoiser_rng = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        x_set, t, noise = jnp.asarray(x_set), jnp.asarray(t), jnp.asarray(noise)
        n, *image = x_set.shape[1:]
        x_0, noise, t_image = x_set.reshape(-1, *image), noise.reshape(-1, *image), jnp.repeat(t, n)
        context, kl = self.networks.context(params, x_set, t, encoder_rng, shots=shots, label=label), jnp.zeros(())
        if self.networks.is_random and context is not None:
            if latent_noise is None:
                raise ValueError("A variational context is drawn in training: give `latent_noise`.")
            context, kl = self.networks.draw(params, context, latent_noise)
        if context is not None and dropped is not None:
            dropped = jnp.reshape(dropped, (-1,) + (1,) * (context.ndim - 1))
            context = jnp.where(dropped, params["null_context"], context)
        x_t = self.diffusion.q_sample(x_0, t_image, noise)
        model_output = self.networks.denoise(params, x_t, t_image, context, denoiser_rng)
        losses = self.diffusion.training_losses(model_output, x_0, x_t, t_image, noise, jax.lax.stop_gradient)
        return losses.mean() + self.config.encoder.kl_weight * kl.mean()

    def encode(self, support: jax.Array | np.ndarray, t: jax.Array | np.ndarray | None = None) -> jax.Array:
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
            ValueError: another shape of images, whole numbers, no t for an encoder that sees it, or a model that takes
                no support.
        """
        return generation.guide(self.networks, self.params, self._checked(support), t)

    def sample(
        self,
        support: jax.Array | np.ndarray | None = None,
        num_images: int = 16,
        steps: int = 50,
        sampler: SamplerName = "ddim",
        seed: int = 0,
        eta: float = 0.0,
        batch_size: int = 256,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[int, int] | None = None,
        label: int | jax.Array | np.ndarray | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> jax.Array:
        """Images of the class that a support shows: those of the torch model, to the rounding of float32.

        Compiled on the first call for these shapes and these options of the sampler and of its guidance.

        Args:
            support: (k, c, h, w) or (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; None for the baselines
                without one.
            num_images: images per support.
            steps: timesteps of the process that are taken.
            sampler: `ddim`, `ddpm` or `dpmpp_2m`.
            seed: seed of the noise, a 64-bit integer.
            eta: of DDIM.
            batch_size: images that are generated at a time, on all devices together; no effect on the images.
            guidance_scale: of classifier-free guidance; 1 is none. Other values need a model that was trained with
                `encoder.context_dropout`.
            guidance_interval: timesteps t of the full process, low <= t < high, that are guided; all by default.
            label: a training class or int (b,) of them, for class-conditional models.
            devices: over which every batch is spread; the parameters' own by default. No effect on the images.

        Returns:
            (num_images, c, h, w), or (b, num_images, c, h, w) for a batch of supports or labels, in [-1, 1].

        Raises:
            SetSizeMismatchError: a support is empty or larger than the model takes.
            ConfigError: an unknown sampler, an option out of range, guidance without a null context, num_images or
                batch_size below 1.
            ValueError: another shape of images, whole numbers; a support, or no support, for a model that takes none,
                or one; the same of labels.
            OverflowError: the seed has more than 64 bits.
        """
        for name, value in (("num_images", num_images), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        sampling = SamplingConfig(steps, sampler, eta, guidance_scale, guidance_interval)
        guides = self._guides(support, label, sampling)
        guide_count = 1 if guides is None else len(guides)
        total, count = guide_count * num_images, len(devices) if devices else 1
        # Every batch has one size, so that one compilation does for all; what is too much is cut off at the end.
        size = -(-min(batch_size, total) // count) * count
        index = np.arange(-(-total // size) * size, dtype=np.int32)
        context_index = np.minimum(index // num_images, guide_count - 1)
        params, split = self.params, None
        if devices:
            mesh = Mesh(np.asarray(devices), ("batch",))
            split = NamedSharding(mesh, PartitionSpec("batch"))
            params, guides = jax.device_put((params, guides), NamedSharding(mesh, PartitionSpec()))
        batches = [
            generation.generate(
                self.networks,
                params,
                guides,
                *jax.device_put((context_index[start : start + size], index[start : start + size]), split),
                uint64(seed),
                sampling=sampling,
            )
            for start in range(0, len(index), size)
        ]
        images = jnp.concatenate(batches)[:total]
        batched = np.ndim(label) == 1 if label is not None else support is not None and support.ndim == 5
        return images.reshape(guide_count, num_images, *images.shape[1:]) if batched else images

    def _guides(self, support: Any, label: Any, sampling: SamplingConfig) -> jax.Array | None:
        """What conditions generation: contexts (b, ...), supports where the encoder sees t, or None."""
        encoder = self.config.encoder
        requests.check_guidance(sampling, self.config)
        if not encoder.takes_support:
            if support is not None:
                requests.check_support(tuple(support.shape), self.config)
            if label is not None:
                label = np.atleast_1d(label)
                requests.check_labels(label.tolist(), self.config)
            return self.networks.label_context(self.params, label)
        if support is None or label is not None:
            raise ValueError("This model is conditioned on a support (b, k, c, h, w) and on nothing else: give it one.")
        supports = self._checked(support)
        if encoder.time_token == "timestep":
            return supports
        return generation.guide(self.networks, self.params, supports, None)

    def _checked(self, support: Any) -> jax.Array:
        """A batch of supports (b, k, c, h, w) that the model can take."""
        supports = support[None] if support.ndim == 4 else support
        requests.check_support(tuple(supports.shape), self.config)
        if not jnp.issubdtype(supports.dtype, jnp.floating):
            raise ValueError(f"A support has floats in [-1, 1]; got {supports.dtype}: scale pixels by x / 127.5 - 1.")
        return jnp.asarray(supports, dtype=jnp.float32)
