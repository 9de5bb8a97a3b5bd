"""The networks of a configuration as pure functions of their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.embeddings import timestep_embedding
from lightning_vfs.core.sets import complete, leave_one_out
from lightning_vfs.flax.dit import DiT
from lightning_vfs.flax.encoder import SetEncoder
from lightning_vfs.flax.layers import MLPProjection, PosteriorGaussian, TimeEmbed

Params = dict[str, Any]
"""Nested dict: network ("encoder", "dit", ...) -> "params" -> its layers' names -> arrays."""


@dataclass(frozen=True)
class Networks:
    """Set encoder, denoiser and what lies between; hashable, so that it can be a static argument of `jax.jit`.

    Every function takes the parameters first. With a `dropout_rng` its networks drop out; without one they do not.
    """

    config: VFSConfig

    def context(
        self, params: Params, x_set: jax.Array, t: jax.Array | None, dropout_rng: jax.Array | None = None
    ) -> jax.Array:
        """Leave-one-out context of every image of every set: (b, n, c, h, w), int (b,) or None -> (b*n, d).

        Raises:
            ValueError: no t for an encoder that sees it.
        """
        n = x_set.shape[1]
        if self.config.sets.held_out == "none":
            return jnp.repeat(self.encode(params, x_set, t, dropout_rng), n, axis=0)
        others = rearrange(leave_one_out(x_set), "b n k c h w -> (b n) k c h w")
        return self.encode(params, others, None if t is None else jnp.repeat(t, n), dropout_rng)

    def encode(
        self, params: Params, x_set: jax.Array, t: jax.Array | None, dropout_rng: jax.Array | None = None
    ) -> jax.Array:
        """Context of sets that may leave slots empty: (b, k, c, h, w), int (b,) or None -> (b, d).

        Raises:
            ValueError: no t for an encoder that sees it.
        """
        encoder_rng, projection_rng = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
        if self.config.encoder.fills_slots:
            x_set = complete(x_set, self.config.sets.slots)
        out = self._apply("encoder", params, x_set, self._time(params, t), **_dropout(encoder_rng))
        # Of tokens, `film` conditioning takes the mean.
        out = out.mean(axis=1) if out.ndim == 3 else out
        if self.config.encoder.projection_dim:
            return self._apply("projection", params, out, **_dropout(projection_rng))
        return out

    def _time(self, params: Params, t: jax.Array | None) -> jax.Array | None:
        """Embedding of the timesteps for the encoders that see them: int (b,) -> (b, dim)."""
        if self.config.encoder.time_token != "timestep":
            return None
        if t is None:
            raise ValueError(
                "This encoder was built with time_token `timestep`: it needs the timestep t (int, shape (b,)), "
                "in training and at every sampling step."
            )
        sinusoids = timestep_embedding(jnp.asarray(t), self.config.encoder.dim // 4, jnp.float32)
        return self._apply("time_embed", params, sinusoids)

    def guide(self, params: Params, support: jax.Array, t: jax.Array | None) -> jax.Array:
        """Context that conditions generation: of a Gaussian one its mean. (b, k, c, h, w), int (b,) -> (b, d)."""
        context = self.encode(params, support, t)
        return self.posterior(params, context)[0] if self.is_variational else context

    @property
    def is_variational(self) -> bool:
        """Whether the context is Gaussian."""
        return self.config.encoder.context == "variational"

    def posterior(self, params: Params, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of a Gaussian context: (b, d) -> (b, dim) each."""
        return self._apply("posterior", params, context)

    def denoise(
        self,
        params: Params,
        x_t: jax.Array,
        t: jax.Array,
        context: jax.Array,
        dropout_rng: jax.Array | None = None,
    ) -> jax.Array:
        """The denoiser's output: (b, c, h, w), int (b,), (b, d) -> (b, c or 2c, h, w)."""
        return self._apply("dit", params, x_t, t, context, **_dropout(dropout_rng))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter that the networks have, by its path joined by `/`."""
        sets, encoder = self.config.sets, self.config.encoder
        image = (sets.channels, sets.image_size, sets.image_size)
        inputs: dict[str, list[tuple[int, ...]]] = {
            "encoder": [(1, sets.slots, *image), (1, encoder.dim)],
            "dit": [(1, *image), (1,), (1, encoder.context_dim)],
            "time_embed": [(1, encoder.dim // 4)],
            "posterior": [(1, encoder.output_dim)],
            "projection": [(1, encoder.dim)],
        }
        key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
        trees = {}
        for name, module in self._modules.items():
            example = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs[name]]
            trees[name] = jax.eval_shape(module.init, key, *example)
        return {path: leaf.shape for path, leaf in flatten_dict(trees, sep="/").items()}

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """The networks by their names in the parameter tree; only those that this configuration has."""
        encoder = self.config.encoder
        modules: dict[str, nn.Module] = {"encoder": SetEncoder(self.config), "dit": DiT(self.config)}
        if encoder.time_token == "timestep":
            modules["time_embed"] = TimeEmbed(encoder.dim)
        if self.is_variational:
            modules["posterior"] = PosteriorGaussian(encoder.context_dim)
        if encoder.projection_dim:
            hidden_dim = encoder.projection_hidden_dim or encoder.projection_dim
            modules["projection"] = MLPProjection(encoder.projection_dim, hidden_dim, encoder.dropout)
        return modules

    def _apply(self, name: str, params: Params, *inputs: Any, **options: Any) -> Any:
        return self._modules[name].apply(params[name], *inputs, **options)


def _dropout(rng: jax.Array | None) -> dict[str, Any]:
    """Options of a network that drops out by this key, or not at all."""
    return {"deterministic": rng is None, "rngs": None if rng is None else {"dropout": rng}}
