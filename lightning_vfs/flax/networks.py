"""The networks of a configuration as pure functions of their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict

from lightning_vfs.core import requests
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.embeddings import timestep_embedding
from lightning_vfs.core.sets import complete, keep_first, leave_one_out, pool_tokens
from lightning_vfs.core.unet import EMBEDDING_RATIO
from lightning_vfs.flax.context import ClassContext, DiscreteContext, GaussianContext
from lightning_vfs.flax.dit import DiT
from lightning_vfs.flax.encoder import SetEncoder, ViTEncoder
from lightning_vfs.flax.layers import MLPProjection, TimeEmbed
from lightning_vfs.flax.unet import UNet, UNetEncoder

Params = dict[str, Any]
"""Nested: network ("encoder", "dit", ...) -> "params" -> its layers' names -> arrays. "null_context" is an array."""

ENCODERS: dict[str, type[nn.Module]] = {"set_vit": SetEncoder, "vit": ViTEncoder, "unet": UNetEncoder}
DENOISERS: dict[str, type[nn.Module]] = {"dit": DiT, "unet": UNet}
POSTERIORS: dict[str, type[nn.Module]] = {"variational": GaussianContext, "variational_discrete": DiscreteContext}


@dataclass(frozen=True)
class Networks:
    """Encoder, denoiser and what lies between; hashable, so that it can be a static argument of `jax.jit`.

    Every function takes the parameters first. With a `dropout_rng` its networks drop out; without one they do not.
    Shapes of contexts: (b, d) for `film` conditioning, (b, tokens, d) for `lag`; None without an encoder.
    """

    config: VFSConfig

    # -- contexts --------------------------------------------------------------------------------------------------

    def context(
        self,
        params: Params,
        x_set: jax.Array,
        t: jax.Array | None = None,
        dropout_rng: jax.Array | None = None,
        *,
        shots: jax.Array | None = None,
        label: jax.Array | None = None,
    ) -> jax.Array | None:
        """Leave-one-out context of every image of every set: (b, n, c, h, w) -> (b*n, d) or (b*n, tokens, d).

        Args:
            t: int (b,), for encoders that see it.
            shots: int (b,), from how many of the images contexts are made; all by default.
            label: int (b,), the class of every set; for class-conditional models.

        Raises:
            ValueError: no label for a class-conditional model, or no t for an encoder that sees it.
        """
        n = x_set.shape[1]
        if not self.config.encoder.takes_support:
            context = self.label_context(params, label)
            return None if context is None else jnp.repeat(context, n, axis=0)
        if self.config.sets.held_out == "none":
            return jnp.repeat(self.encode(params, x_set, t, dropout_rng, shots), n, axis=0)
        others = rearrange(leave_one_out(x_set), "b n k c h w -> (b n) k c h w")
        t, shots = (None if each is None else jnp.repeat(each, n) for each in (t, shots))
        return self.encode(params, others, t, dropout_rng, shots)

    def label_context(self, params: Params, label: jax.Array | None) -> jax.Array | None:
        """Context of classes: int (b,) -> (b, d); None for the unconditional baseline.

        Raises:
            ValueError: no label for a class-conditional model.
        """
        if self.config.encoder.architecture == "none":
            return None
        if label is None:
            raise requests.missing_label(self.config)
        return self._apply("encoder", params, label)

    def encode(
        self,
        params: Params,
        x_set: jax.Array,
        t: jax.Array | None,
        dropout_rng: jax.Array | None = None,
        shots: jax.Array | None = None,
    ) -> jax.Array:
        """What the encoder makes of sets that may leave slots empty: (b, k, c, h, w) -> (b, d) or (b, tokens, d).

        Raises:
            ValueError: no t for an encoder that sees it.
        """
        encoder_rng, projection_rng = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        if shots is not None:
            x_set = keep_first(x_set, shots)
        if self.config.encoder.fills_slots:
            x_set = complete(x_set, self.config.sets.slots)
        out = self._apply("encoder", params, x_set, self._time(params, t), shots, **_dropout(encoder_rng))
        if self.config.denoiser.conditioning == "film" and out.ndim == 3:
            out = out.mean(axis=1)
        if self.config.encoder.projection_dim:
            out = self._apply("projection", params, out, **_dropout(projection_rng))
        groups = self.config.denoiser.context_tokens
        return pool_tokens(out, groups) if groups else out

    def _time(self, params: Params, t: jax.Array | None) -> jax.Array | None:
        """Embedding of the timesteps for the encoders that see them: int (b,) -> (b, e)."""
        if self.config.encoder.time_token != "timestep":
            return None
        if t is None:
            raise ValueError(
                "This encoder was built with time_token `timestep`: it needs the timestep t (int, shape (b,)), "
                "in training and at every sampling step."
            )
        sinusoids = timestep_embedding(jnp.asarray(t), self._time_dims[0], jnp.float32)
        return self._apply("time_embed", params, sinusoids)

    @property
    def _time_dims(self) -> tuple[int, int]:
        """Sinusoids of the encoder's timestep, and width of their embedding."""
        encoder = self.config.encoder
        if encoder.architecture == "unet":
            return encoder.channels, EMBEDDING_RATIO * encoder.channels
        return encoder.dim // 4, encoder.dim

    def guide(self, params: Params, support: jax.Array, t: jax.Array | None) -> jax.Array:
        """Context that conditions generation, of a random one its mode: (b, k, c, h, w), int (b,) -> (b, ...)."""
        context = self.encode(params, support, t)
        return self._apply("posterior", params, context, method="mode") if self.is_random else context

    @property
    def is_random(self) -> bool:
        """Whether the context is drawn from a posterior."""
        return self.config.encoder.context in POSTERIORS

    @property
    def is_variational(self) -> bool:
        """Whether the context is Gaussian."""
        return self.config.encoder.context == "variational"

    def posterior(self, params: Params, context: jax.Array) -> Any:
        """Of a Gaussian context mean and log-variance, of a discrete one the logits; see `flax.context`."""
        return self._apply("posterior", params, context)

    def draw(self, params: Params, context: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A context (b, ..., dim) of the posterior by noise, and its KL to the prior in bits, (b,)."""
        return self._apply("posterior", params, context, noise, method="draw")

    # -- denoiser --------------------------------------------------------------------------------------------------

    def denoise(
        self,
        params: Params,
        x_t: jax.Array,
        t: jax.Array,
        context: jax.Array | None,
        dropout_rng: jax.Array | None = None,
    ) -> jax.Array:
        """The denoiser's output: (b, c, h, w), int (b,), context (b, ...) -> (b, c or 2c, h, w)."""
        name = self.config.denoiser.architecture
        return self._apply(name, params, x_t, t, context, **_dropout(dropout_rng))

    # -- parameters ------------------------------------------------------------------------------------------------

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter that the networks have, by its path joined by `/`."""
        config, sets, encoder = self.config, self.config.sets, self.config.encoder
        time_features, time_dim = self._time_dims
        time = _floats(1, time_dim) if encoder.time_token == "timestep" else None
        image = _floats(1, config.denoiser_channels, config.denoiser_size, config.denoiser_size)
        x_set = _floats(1, sets.slots, config.encoder_channels, config.encoder_size, config.encoder_size)
        label = jax.ShapeDtypeStruct((1,), jnp.int32)
        context = _floats(1, *config.context_shape) if encoder.context_dim else None
        inputs = {
            "encoder": (x_set, time) if encoder.takes_support else (label,),
            config.denoiser.architecture: (image, label, context),
            "time_embed": (_floats(1, time_features),),
            "posterior": (_floats(1, encoder.output_dim),),
            "projection": (_floats(1, encoder.dim),),
        }
        key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
        trees: dict[str, Any] = {
            name: jax.eval_shape(module.init, key, *inputs[name]) for name, module in self._modules.items()
        }
        if encoder.context_dropout:
            trees["null_context"] = _floats(encoder.context_dim)
        return {path: leaf.shape for path, leaf in flatten_dict(trees, sep="/").items()}

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """The networks by their names in the parameter tree; only those that this configuration has."""
        encoder, denoiser = self.config.encoder, self.config.denoiser.architecture
        modules: dict[str, nn.Module] = {denoiser: DENOISERS[denoiser](self.config)}
        if encoder.takes_support:
            modules["encoder"] = ENCODERS[encoder.architecture](self.config)
        if encoder.architecture == "class_label":
            modules["encoder"] = ClassContext(encoder)
        if encoder.time_token == "timestep":
            modules["time_embed"] = TimeEmbed(self._time_dims[1])
        if self.is_random:
            modules["posterior"] = POSTERIORS[encoder.context](encoder)
        if encoder.projection_dim:
            hidden_dim = encoder.projection_hidden_dim or encoder.projection_dim
            modules["projection"] = MLPProjection(encoder.projection_dim, hidden_dim, encoder.dropout)
        return modules

    def _apply(self, name: str, params: Params, *inputs: Any, **options: Any) -> Any:
        return self._modules[name].apply(params[name], *inputs, **options)


def _dropout(rng: jax.Array | None) -> dict[str, Any]:
    """Options of a network that drops out by this key, or not at all."""
    return {"deterministic": rng is None, "rngs": None if rng is None else {"dropout": rng}}


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
