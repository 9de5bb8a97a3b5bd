"""The few-shot diffusion model as one linen module: a set encoder conditions a denoiser."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict

from lightning_vfs.core import requests
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.diffusion import GaussianDiffusion
from lightning_vfs.core.sets import complete, keep_first, leave_one_out, pool_tokens
from lightning_vfs.core.unet import EMBEDDING_RATIO
from lightning_vfs.flax.context import ClassContext, DiscreteContext, GaussianContext
from lightning_vfs.flax.dit import DiT
from lightning_vfs.flax.encoder import SetEncoder, ViTEncoder
from lightning_vfs.flax.layers import MLPProjection, TimeEmbed
from lightning_vfs.flax.unet import UNet, UNetEncoder

Params = dict[str, Any]
"""Nested: network ("encoder", "dit", ...) -> "params" -> its layers' names -> arrays. "null_context" is an array."""

ENCODERS: dict[str, type[nn.Module]] = {
    "set_vit": SetEncoder,
    "vit": ViTEncoder,
    "unet": UNetEncoder,
    "class_label": ClassContext,
}
DENOISERS: dict[str, type[nn.Module]] = {"dit": DiT, "unet": UNet}
POSTERIORS: dict[str, type[nn.Module]] = {"variational": GaussianContext, "variational_discrete": DiscreteContext}


class FewShotDiffusion(nn.Module):
    """Set encoder, denoiser and diffusion process: contexts, the denoiser's output, and the loss.

    Hashable, so that it can be a static argument of `jax.jit`. Shapes of contexts: (b, d) for `film` conditioning,
    (b, tokens, d) for `lag`; there are none without an encoder.
    """

    config: VFSConfig

    def setup(self) -> None:
        config, encoder, denoiser = self.config, self.config.encoder, self.config.denoiser.architecture
        self.denoiser = DENOISERS[denoiser](config, name=denoiser)
        if encoder.architecture in ENCODERS:
            self.encoder = ENCODERS[encoder.architecture](config)
        if encoder.time_token == "timestep":
            if encoder.architecture == "unet":
                self.time_embed = TimeEmbed(encoder.channels, EMBEDDING_RATIO * encoder.channels)
            else:
                self.time_embed = TimeEmbed(encoder.dim // 4, encoder.dim)
        if encoder.projection_dim:
            hidden_dim = encoder.projection_hidden_dim or encoder.projection_dim
            self.projection = MLPProjection(encoder.projection_dim, hidden_dim, encoder.dropout)
        if self.is_random:
            self.posterior = POSTERIORS[encoder.context](encoder)
        if encoder.context_dropout:
            self.null_context = self.param("null_context", nn.initializers.zeros, (encoder.context_dim,))

    @property
    def is_random(self) -> bool:
        """Whether the context is drawn from a posterior."""
        return self.config.encoder.context in POSTERIORS

    def contexts(
        self,
        x_set: jax.Array,
        t: jax.Array | None = None,
        shots: jax.Array | None = None,
        label: jax.Array | None = None,
    ) -> jax.Array | None:
        """Leave-one-out context of every image of every set, as `FlaxVFSDDPM.context` gives it."""
        n = x_set.shape[1]
        if self.config.encoder.condition != "support":
            context = self.label_context(label)
            return None if context is None else jnp.repeat(context, n, axis=0)
        if self.config.sets.held_out == "none":
            return jnp.repeat(self._encode(x_set, t, shots), n, axis=0)
        others = rearrange(leave_one_out(x_set), "b n k c h w -> (b n) k c h w")
        t, shots = (None if each is None else jnp.repeat(each, n) for each in (t, shots))
        return self._encode(others, t, shots)

    def label_context(self, label: jax.Array | None) -> jax.Array | None:
        """Context of classes: int (b,) -> (b, d); None for the unconditional baseline.

        Raises:
            ValueError: no label for a class-conditional model.
        """
        if self.config.encoder.condition is None:
            return None
        if label is None:
            raise requests.missing_label(self.config)
        return self.encoder(label)

    def encode(self, support: jax.Array, t: jax.Array | None = None) -> jax.Array:
        """Context that conditions generation, of a random one its mode: (b, k, c, h, w), int (b,) -> (b, ...).

        Raises:
            ValueError: no t for an encoder that sees it.
        """
        context = self._encode(support, t)
        return self.posterior.mode(context) if self.is_random else context

    def _encode(self, x_set: jax.Array, t: jax.Array | None, shots: jax.Array | None = None) -> jax.Array:
        """What the encoder makes of sets that may leave slots empty: (b, k, c, h, w) -> (b, d) or (b, tokens, d)."""
        encoder, denoiser, time = self.config.encoder, self.config.denoiser, None
        if encoder.time_token == "timestep":
            if t is None:
                raise requests.missing_timestep()
            time = self.time_embed(t)
        if shots is not None:
            x_set = keep_first(x_set, shots)
        if encoder.fills_slots:
            x_set = complete(x_set, self.config.sets.slots)
        encoded = self.encoder(x_set, time, shots)
        if denoiser.conditioning == "film" and encoded.ndim == 3:
            encoded = encoded.mean(axis=1)
        if encoder.projection_dim:
            encoded = self.projection(encoded)
        return pool_tokens(encoded, denoiser.context_tokens) if denoiser.context_tokens else encoded

    def denoise(self, x_t: jax.Array, t: jax.Array, context: jax.Array | None) -> jax.Array:
        """The denoiser's output: (b, c, h, w), int (b,), context (b, ...) -> (b, c or 2c, h, w)."""
        return self.denoiser(x_t, t, context)

    def loss(
        self,
        x_set: jax.Array,
        t: jax.Array,
        noise: jax.Array,
        latent_noise: jax.Array | None = None,
        *,
        shots: jax.Array | None = None,
        dropped: jax.Array | None = None,
        label: jax.Array | None = None,
        negative: tuple[jax.Array, jax.Array] | None = None,
        bound_weight: jax.Array | None = None,
    ) -> jax.Array:
        """Training loss of a batch, a scalar, as `FlaxVFSDDPM.loss` gives it."""
        if self.is_random and latent_noise is None:
            raise requests.missing_latent_noise()
        if dropped is not None:
            requests.check_null_context(self.config)
        n, *image = x_set.shape[1:]
        x_0, noise, t_image = x_set.reshape(-1, *image), noise.reshape(-1, *image), jnp.repeat(t, n)
        context, kl = self.contexts(x_set, t, shots, label), jnp.zeros(())
        contrast = None if dropped is None else jnp.logical_not(dropped).reshape(-1).astype(x_0.dtype)
        if self.is_random:
            context, kl = self.posterior.draw(context, latent_noise)
        if context is not None and dropped is not None:
            dropped = jnp.reshape(dropped, (-1,) + (1,) * (context.ndim - 1))
            context = jnp.where(dropped, self.null_context, context)
        diffusion = GaussianDiffusion(self.config.diffusion)
        options = {} if bound_weight is None else {"bound_weight": jnp.repeat(bound_weight, n)}
        x_t = diffusion.q_sample(x_0, t_image, noise)
        model_output = self.denoise(x_t, t_image, context)
        if negative is not None:
            other, other_noise = (each.reshape(-1, *image) for each in negative)
            options["negative"] = diffusion.target(other, t_image, other_noise)
        losses = diffusion.training_losses(
            model_output, x_0, x_t, t_image, noise, jax.lax.stop_gradient, contrast=contrast, **options
        )
        return losses.mean() + self.config.encoder.kl_weight * kl.mean()

    @nn.nowrap
    def run(
        self,
        params: Params,
        *inputs: Any,
        method: str | Callable[..., Any],
        dropout_rng: jax.Array | None = None,
        **options: Any,
    ) -> Any:
        """What a method gives with these parameters; networks drop out by `dropout_rng`, and without one not at all."""
        # There a network's layers lie right below its name.
        layers = {name: tree if name == "null_context" else tree["params"] for name, tree in params.items()}
        rngs = None if dropout_rng is None else {"dropout": dropout_rng}
        return self.apply({"params": layers}, *inputs, method=method, rngs=rngs, **options)

    @nn.nowrap
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by its path in `Params` joined by `/`."""
        return _shapes(self)


@functools.lru_cache(maxsize=16)  # models of one configuration are many, and tracing one takes a second
def _shapes(module: FewShotDiffusion) -> dict[str, tuple[int, ...]]:
    sets = module.config.sets
    x_set = jnp.broadcast_to(0.0, (1, sets.set_size, sets.channels, sets.image_size, sets.image_size))
    one = jnp.zeros(1, dtype=jnp.int32)
    init = functools.partial(module.init, method="loss")
    params = jax.eval_shape(init, jax.random.key(0), x_set, one, x_set, jnp.zeros(()), label=one)["params"]
    leaves = flatten_dict(params, sep="/")
    return {path.replace("/", "/params/", 1): leaf.shape for path, leaf in leaves.items()}
