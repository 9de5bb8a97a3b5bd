"""Configuration of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_vfs.core.checks import as_tuples, check_at_least, check_choices, check_mlp, check_options, check_unet
from lightning_vfs.core.errors import ConfigError

DenoiserArchitecture = Literal["dit", "unet"] | str
Conditioning = Literal["film", "lag"]
Film = Literal["add", "concat"]


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoiser: predicts from the noisy image, the timestep and the context.

    Args:
        architecture: `dit` (a transformer over the patches of the noisy image, modulated by adaLN-Zero), `unet`
            (residual blocks over feature maps of falling and rising resolution, as guided-diffusion's), or the path of
            a custom class (CONTRIBUTING.md).
        dim: of a `dit`, width of the tokens; a multiple of 4 (sine-cosine positions) and of `heads`.
        depth: of a `dit`, transformer blocks.
        heads: attention heads.
        mlp_ratio: of a `dit`, hidden width of the feed-forward layers over `dim`.
        patch_size: of a `dit`, height and width of a patch in pixels.
        conditioning: `film`, the context modulates every block together with the timestep; or `lag`, only the
            timestep does, and the blocks attend to the context's tokens.
        film: the projected context is added to the timestep embedding (`add`), or both are concatenated and
            projected (`concat`).
        context_tokens: with `lag`, the context's tokens are averaged in this many groups of neighbours; 0 keeps all.
        cross_attention_layers: with `lag` and a `dit`, the blocks that attend to the context, counted from 0; all by
            default. A `unet` does so wherever it has self-attention.
        normalize_condition: of a `dit`: every block normalises the modulating vector and scales it by a learned
            `context_scale`.
        dropout: probability of dropout after every attention and in every feed-forward layer, or in every residual
            block, 0 to below 1.
        pad: of a `dit`, zero pixels put on every side of the noisy image, and cut off the output; the JAX system takes
            2 for images of 28.
        channels: of a `unet`, width of its first level.
        channel_mult: of a `unet`, width of every level over `channels`; each level halves the resolution.
        num_res_blocks: of a `unet`, residual blocks of every level.
        attention_resolutions: of a `unet`, heights of the feature maps with attention; the smallest map always has.
        scale_shift_norm: of a `unet`, the embedding scales and shifts the normalised features (else it is added).
        resblock_updown: of a `unet`, residual blocks change the resolution (else convolutions do).
        options: of a custom class, plain values by name.

    Raises:
        ConfigError: a value is not allowed.
    """

    architecture: DenoiserArchitecture = "dit"
    dim: int = 384
    depth: int = 6
    heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 4
    conditioning: Conditioning = "film"
    film: Film = "add"
    context_tokens: int = 0
    cross_attention_layers: tuple[int, ...] | None = None
    normalize_condition: bool = False
    dropout: float = 0.0
    pad: int = 0
    channels: int = 96
    channel_mult: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = ()
    scale_shift_norm: bool = True
    resblock_updown: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        as_tuples(self, "cross_attention_layers", "channel_mult", "attention_resolutions")
        check_choices(self)
        check_at_least(self, 1, "dim", "depth", "heads", "patch_size")
        check_at_least(self, 0, "pad", "context_tokens")
        check_mlp(self)
        check_options(self)
        if self.architecture == "unet":
            check_unet(self)
            for option in ("pad", "normalize_condition", "cross_attention_layers"):
                if getattr(self, option):
                    raise ConfigError(
                        f"DenoiserConfig.{option} is {getattr(self, option)!r}, but only a 'dit' has this option, and "
                        "architecture is 'unet': leave it out."
                    )
        elif self.architecture == "dit" and (self.dim % 4 or self.dim % self.heads):
            raise ConfigError(
                f"DenoiserConfig.dim is {self.dim} with {self.heads} heads; "
                "it must be a multiple of 4 and of the number of heads."
            )
        self._check_lag()

    def _check_lag(self) -> None:
        layers = self.cross_attention_layers
        if self.conditioning == "film":
            for option in ("context_tokens", "cross_attention_layers"):
                if getattr(self, option):
                    raise ConfigError(
                        f"DenoiserConfig.{option} is {getattr(self, option)!r}, but conditioning is 'film', which has "
                        "no cross-attention: set conditioning to 'lag', or leave it out."
                    )
        elif layers is not None and (not layers or not all(0 <= layer < self.depth for layer in layers)):
            raise ConfigError(
                f"DenoiserConfig.cross_attention_layers is {list(layers)}; with depth {self.depth} it must hold one or "
                f"more of the numbers 0 to {self.depth - 1}."
            )

    def attends_to_context(self, layer: int) -> bool:
        """Whether block `layer` of a `dit` has cross-attention."""
        layers = self.cross_attention_layers
        return self.conditioning == "lag" and (layers is None or layer in layers)
