"""FlaxVFSDDPM: the few-shot diffusion model in JAX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lightning_vfs.core import contract, requests
from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.flax import generation
from lightning_vfs.flax.few_shot_diffusion import FewShotDiffusion, Params
from lightning_vfs.flax.noise import uint64
from lightning_vfs.interop.jax_parameters import parameter_table, to_jax_params, wrong_leaves
from lightning_vfs.training.pretrained import load_pretrained

if TYPE_CHECKING:
    from lightning_vfs.modules import FewShotDiffusion as TorchModel

NOT_IN_JAX = {
    "encoder.architecture=set_tokens": "the encoder `set_tokens` runs only in torch",
    "latent.autoencoder": "the autoencoder, in whose latents it diffuses, runs only in torch",
    "encoder.options": "an encoder of your own runs only in torch",
    "denoiser.options": "a denoiser of your own runs only in torch",
}
"""Options of `VFSConfig` that the twin does not have, or values of them, and why: it refuses models that set them."""


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
        ConfigError: the configuration sets an option of `NOT_IN_JAX`.
    """

    config: VFSConfig
    params: Params

    def __post_init__(self) -> None:
        _refuse_what_is_not_in_jax(self.config)
        leaves: dict[str, Any] = flatten_dict(self.params, sep="/")
        # A copy of what is not in JAX yet: of a NumPy array JAX may take the memory itself.
        leaves = {path: leaf if isinstance(leaf, jax.Array) else jnp.array(leaf) for path, leaf in leaves.items()}
        wrong = wrong_leaves(leaves, self.module.shapes(), self.config)
        if wrong:
            raise CheckpointError("The parameters do not fit the configuration:\n  " + "\n  ".join(wrong))
        object.__setattr__(self, "params", unflatten_dict(leaves, sep="/"))

    @classmethod
    def from_torch(cls, model: TorchModel) -> FlaxVFSDDPM:
        """The twin of a torch model, with the weights that it holds now."""
        _refuse_what_is_not_in_jax(model.config)
        state_dict = {name: tensor.detach().cpu().float().numpy() for name, tensor in model.state_dict().items()}
        return cls(model.config, unflatten_dict(to_jax_params(state_dict, model.config), sep="/"))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> FlaxVFSDDPM:
        """Model of a folder as `VFSDDPM.save_pretrained` writes it, or of a Hugging Face hub id.

        Warns:
            StaleSetSizeWarning: the configuration states another set size than the weights, which override it.

        Raises:
            CheckpointError: there is no such folder, or it does not hold a lightning_vfs model.
        """
        config, state_dict = load_pretrained(name, "np")
        config = contract.config_for_weights(state_dict, config)
        _refuse_what_is_not_in_jax(config)
        return cls(config, unflatten_dict(_leaves(state_dict, config, name), sep="/"))

    @cached_property
    def module(self) -> FewShotDiffusion:
        """The model as a linen module without its parameters."""
        return FewShotDiffusion(self.config)

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
        return self.module.run(self.params, jnp.asarray(x_set), t, shots, label, method="contexts")

    def posterior(self, context: jax.Array) -> Any:
        """Of a Gaussian context mean and log-variance, (b, ..., dim) each; of a discrete one its codes' logits.

        Raises:
            ConfigError: the context is deterministic.
        """
        if not self.module.is_random:
            raise ConfigError("EncoderConfig.context is 'deterministic': only a variational one has a posterior.")
        return self.module.run(self.params, context, method=lambda module, context: module.posterior(context))

    def denoiser(self, x_t: jax.Array, t: jax.Array, context: jax.Array | None) -> jax.Array:
        """The denoiser's output: x_t (b, c, h, w), t int (b,), context (b, ...) -> (b, c or 2c, h, w)."""
        return self.module.run(self.params, jnp.asarray(x_t), jnp.asarray(t), context, method="denoise")

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
        negative: tuple[jax.Array, jax.Array] | None = None,
        bound_weight: jax.Array | None = None,
    ) -> jax.Array:
        """Training loss of a batch, a scalar: a pure function of its arguments, for `jax.grad` and `jax.jit`.

        Args:
            params: used instead of the model's own.
            x_set: (b, n, c, h, w) in [-1, 1].
            t: int (b,), one timestep per set.
            noise: standard normal, shaped like x_set.
            latent_noise: for a variational context: standard normal (b*n, *config.encoded_shape), with a discrete one
                uniform in [0, 1), shaped like its logits: (b*n, ..., codebook_groups, codebook_size).
            dropout_rng: key of the dropout; without one nothing is dropped.
            shots: as in `context`.
            label: as in `context`.
            dropped: bool (b, n), images whose context is replaced by the null context.
            negative: for `contrastive_weight`: another set in place of each, and its noise, both shaped like x_set.
            bound_weight: (b,), of the variational bound of every set, where timesteps are not drawn alike.

        Raises:
            ValueError: no latent_noise for a variational context, no label for a class-conditional model, or dropped
                images of a model without a null context.
        """
        given = (*map(jnp.asarray, (x_set, t, noise)), latent_noise)
        options = {
            "shots": shots, "dropped": dropped, "label": label, "negative": negative, "bound_weight": bound_weight,
        }  # fmt: skip
        return self.module.run(params, *given, **options, method="loss", dropout_rng=dropout_rng)

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
        supports = support[None] if support.ndim == 4 else support
        requests.check_support(tuple(supports.shape), self.config)
        return generation.encode(self.module, self.params, _floats(supports), t)

    def sample(
        self,
        support: jax.Array | np.ndarray | None = None,
        num_images: int = 16,
        sampling: SamplingConfig = SamplingConfig(),
        *,
        seed: int = 0,
        batch_size: int = 256,
        label: int | jax.Array | np.ndarray | None = None,
        devices: Sequence[jax.Device] | None = None,
        **options: Any,
    ) -> jax.Array:
        """Images of the class that a support shows: those of the torch model, to the rounding of float32.

        Compiled on the first call for these shapes and this `sampling`.

        Args:
            support: (k, c, h, w) or (b, k, c, h, w) in [-1, 1], k from 1 to `config.sets.shots`; None for the baselines
                without one.
            num_images: images per support.
            sampling: how images are drawn.
            seed: seed of the noise, a 64-bit integer.
            batch_size: images that are generated at a time, on all devices together; no effect on the images.
            label: a training class or int (b,) of them, for class-conditional models.
            devices: over which every batch is spread; the parameters' own by default. No effect on the images.
            **options: fields of `sampling` to replace, such as `steps=20, sampler="ddpm", guidance_scale=2.0`.

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
        how: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "label": label, "devices": devices}
        images = jnp.concatenate(list(self.sample_batches(support, num_images, sampling, **how, **options)))
        batched = np.ndim(label) == 1 if label is not None else support is not None and support.ndim == 5
        return images.reshape(-1, num_images, *images.shape[1:]) if batched else images

    def sample_batches(
        self,
        support: jax.Array | np.ndarray | None = None,
        num_images: int = 16,
        sampling: SamplingConfig = SamplingConfig(),
        *,
        seed: int = 0,
        batch_size: int = 256,
        label: int | jax.Array | np.ndarray | None = None,
        devices: Sequence[jax.Device] | None = None,
        **options: Any,
    ) -> Iterator[jax.Array]:
        """The images of `sample`, in batches as they are generated, for more than memory holds at once.

        Args, Raises: as in `sample`.

        Yields:
            (m, c, h, w) in [-1, 1], m about `batch_size`: all images of the first support or label, then those of the
            second.
        """
        check_whole_number("num_images", num_images, 1)
        check_whole_number("batch_size", batch_size, 1)
        sampling = replace(sampling, **options)
        condition = requests.Condition(
            support[None] if support is not None and support.ndim == 4 else support,
            None if label is None else np.atleast_1d(label),
        )
        conditions = self._conditions(condition, sampling)
        total, count = condition.size * num_images, len(devices) if devices else 1
        # Every batch has one size, so that one compilation does for all; what is too much is cut off at the end.
        size = -(-min(batch_size, total) // count) * count
        index = np.arange(-(-total // size) * size, dtype=np.int32)
        context_index = np.minimum(index // num_images, condition.size - 1)
        params, split = self.params, None
        if devices:
            mesh = Mesh(np.asarray(devices), ("batch",))
            split = NamedSharding(mesh, PartitionSpec("batch"))
            params, conditions = jax.device_put((params, conditions), NamedSharding(mesh, PartitionSpec()))
        for start in range(0, len(index), size):
            images = generation.generate(
                self.module,
                params,
                conditions,
                *jax.device_put((context_index[start : start + size], index[start : start + size]), split),
                uint64(seed),
                sampling=sampling,
            )
            yield images[: total - start]

    def _conditions(self, condition: requests.Condition, sampling: SamplingConfig) -> jax.Array | None:
        """What conditions generation: contexts (b, ...), supports where the encoder sees t, or None."""
        requests.check_guidance(sampling, self.config)
        condition.check(self.config)
        if condition.support is None:
            return self.module.run(self.params, condition.label, method="label_context")
        supports = _floats(condition.support)
        if self.config.encoder.time_token == "timestep":
            return supports
        return generation.encode(self.module, self.params, supports, None)


def _refuse_what_is_not_in_jax(config: VFSConfig) -> None:
    given, defaults = config.to_dict(), VFSConfig().to_dict()
    for option, reason in NOT_IN_JAX.items():
        path, _, value = option.partition("=")
        part, name = path.split(".")
        if given[part][name] == value if value else given[part][name] != defaults[part][name]:
            raise ConfigError(
                f"FlaxVFSDDPM does not run this model: {path} is {given[part][name]!r}, but {reason}. Sample it in "
                "torch, by VFSDDPM.sample or `lightning-vfs sample --framework torch`."
            )


def _floats(support: jax.Array | np.ndarray) -> jax.Array:
    if not jnp.issubdtype(support.dtype, jnp.floating):
        raise ValueError(f"A support has floats in [-1, 1]; got {support.dtype}: scale pixels by x / 127.5 - 1.")
    return jnp.asarray(support, dtype=jnp.float32)


def _leaves(state_dict: dict[str, np.ndarray], config: VFSConfig, source: str | Path) -> dict[str, np.ndarray]:
    """The leaves of the weights, float32, by path."""
    ours = [parameter.name for parameter in parameter_table(config)]
    wrong = [f"missing: {name}" for name in ours if name not in state_dict]
    wrong += [f"extra: {name}" for name in sorted(set(state_dict) - set(ours))]
    if wrong:
        raise CheckpointError(f"The weights in {source} do not fit its configuration:\n  " + "\n  ".join(wrong))
    try:
        return to_jax_params({name: value.astype(np.float32) for name, value in state_dict.items()}, config)
    except ValueError as error:  # einops cannot take apart what has another number of axes
        raise CheckpointError(f"The weights in {source} do not fit its configuration: {error}") from error
