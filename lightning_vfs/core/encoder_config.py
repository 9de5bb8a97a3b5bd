"""Configuration of what conditions the denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_vfs.core.checks import (
    as_tuples,
    check_at_least,
    check_choices,
    check_fraction,
    check_mlp,
    check_options,
    check_unet,
)
from lightning_vfs.core.errors import ConfigError

EncoderArchitecture = Literal["set_vit", "vit", "set_tokens", "unet", "class_label", "none"] | str
Tokenizer = Literal["stack", "per_image_mean", "per_slot_mean"]
Pool = Literal["cls", "mean", "sum", "patches", "mean_patch", "none"]
TimeToken = Literal["none", "zero", "timestep"]
ContextKind = Literal["deterministic", "variational", "variational_discrete"]

POOLS: dict[str, tuple[str, ...]] = {
    "set_vit": ("cls", "mean", "sum", "patches", "none"),
    "vit": ("cls", "mean", "mean_patch", "none"),
    "set_tokens": ("cls", "mean", "patches", "none"),
    "unet": ("mean", "none"),
}
"""Poolings that an encoder's architecture has."""

TOKEN_POOLS = ("patches", "mean_patch", "none")
"""Poolings that leave several tokens, which `lag` attends to."""


@dataclass(frozen=True)
class EncoderConfig:
    """What the denoiser is conditioned on: a set encoder, or one of two baselines without one.

    Args:
        architecture: `set_vit` (sViT: a transformer with LSA over the patches of a stacked set), `vit` (a transformer
            over the patches of all images of the set together), `set_tokens` (a transformer over the patches of every
            image alone; an image is conditioned on the tokens of the others by attention, in sets of any size), `unet`
            (the encoder half of a UNet for every image, then the mean over the set), `class_label` (an embedding of
            training classes: the class-conditional baseline), `none` (the unconditional baseline), or the path of a
            custom class (CONTRIBUTING.md).
        dim: width of the tokens and of the context.
        depth: transformer layers.
        heads: attention heads.
        dim_head: width of one attention head of a transformer.
        mlp_ratio: hidden width of the feed-forward layers over `dim`.
        patch_size: height and width of a patch in pixels.
        tokenizer: of `set_vit`: `stack` (the set's images as channels of one patch), `per_image_mean` (each image's
            patches embedded alone, then averaged over the images given; independent of the set size) or
            `per_slot_mean` (the same over all slots, with zero images in those that are left).
        pool: what becomes the context: the class token, the mean or, of `set_vit`, the sum of all tokens, or several
            tokens: the patch tokens alone (`patches`), every token (`none`), of a `vit` the patch tokens' mean over the
            set, seen by the transformer once more (`mean_patch`); of a `unet` the mean over the smallest feature map,
            or its positions (`none`). Of several tokens, each goes through the head; `film` takes their mean, `lag`
            attends to them. Of `set_tokens`, what is left of every image: its class token, its tokens' mean, those of
            its patches or all; `film` then pools them over the set by the attention of a learned query.
        time_token: `none`, `zero` (a token without a timestep, as the first JAX system had it), or `timestep` (the
            encoder sees t: in training and at every sampling step).
        dropout: probability of dropout in the encoder, 0 to below 1.
        head_hidden_dim: hidden width of a head of two layers; 0 for a head of one.
        projection_dim: width of the context after a projection of three layers; 0 for none.
        projection_hidden_dim: hidden width of that projection; 0 for `projection_dim`.
        context: `deterministic`; `variational` (Gaussian with KL to N(0, I)); or `variational_discrete` (entries of a
            codebook, drawn by Gumbel-softmax in training, the most likely ones when sampling).
        kl_weight: weight of the context's KL in the loss (bits per context dimension, or per code).
        codebook_size: entries that every code chooses among, of `variational_discrete`.
        codebook_groups: codes of a context, each for an equal part of its width.
        gumbel_temperature: of the Gumbel-softmax; the lower, the closer to one entry.
        context_dropout: probability that training puts a learned null context in an image's place, for
            classifier-free guidance when sampling.
        num_classes: of `class_label`, classes of the training split.
        channels: of a `unet`, width of its first level.
        channel_mult: of a `unet`, width of every level over `channels`; each level halves the resolution.
        num_res_blocks: of a `unet`, residual blocks of every level.
        attention_resolutions: of a `unet`, heights of the feature maps with self-attention.
        options: of a custom class, plain values by name.

    Raises:
        ConfigError: a value is not allowed.
    """

    architecture: EncoderArchitecture = "set_vit"
    dim: int = 256
    depth: int = 3
    heads: int = 4
    dim_head: int = 64
    mlp_ratio: float = 4.0
    patch_size: int = 4
    tokenizer: Tokenizer = "stack"
    pool: Pool = "cls"
    time_token: TimeToken = "none"
    dropout: float = 0.0
    head_hidden_dim: int = 0
    projection_dim: int = 0
    projection_hidden_dim: int = 0
    context: ContextKind = "deterministic"
    kl_weight: float = 1.0
    codebook_size: int = 64
    codebook_groups: int = 8
    gumbel_temperature: float = 0.5
    context_dropout: float = 0.0
    num_classes: int = 0
    channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        as_tuples(self, "channel_mult", "attention_resolutions")
        check_choices(self)
        check_at_least(self, 1, "dim", "depth", "heads", "dim_head", "patch_size", "codebook_groups")
        check_at_least(self, 2, "codebook_size")
        check_at_least(self, 0, "head_hidden_dim", "projection_dim", "projection_hidden_dim", "num_classes")
        check_mlp(self)
        check_fraction(self, "context_dropout")
        if self.architecture == "unet":
            check_unet(self)
        if self.projection_hidden_dim and not self.projection_dim:
            raise ConfigError(
                f"EncoderConfig.projection_hidden_dim is {self.projection_hidden_dim}, but there is no projection: "
                "set projection_dim too."
            )
        if self.kl_weight < 0:
            raise ConfigError(f"EncoderConfig.kl_weight is {self.kl_weight}; it must be at least 0.")
        if self.gumbel_temperature <= 0:
            raise ConfigError(f"EncoderConfig.gumbel_temperature is {self.gumbel_temperature}; it must be above 0.")
        if self.time_token == "timestep" and self.dim < 8:
            raise ConfigError(f"EncoderConfig.dim is {self.dim}; time_token `timestep` needs at least 8.")
        if self.context == "variational_discrete" and self.dim % self.codebook_groups:
            raise ConfigError(
                f"EncoderConfig.dim is {self.dim}, but codebook_groups is {self.codebook_groups}: every code stands "
                "for an equal part of the context, so dim must be a multiple of it."
            )
        self._check_architecture()

    def _check_architecture(self) -> None:
        """Refuse options that the architecture cannot have."""
        name = f"EncoderConfig.architecture is {self.architecture!r}"
        check_options(self)
        if self.architecture in POOLS and self.pool not in POOLS[self.architecture]:
            raise ConfigError(
                f"{name}, and its pool is {self.pool!r}; it can pool by "
                f"{', '.join(map(repr, POOLS[self.architecture]))}."
            )
        if self.tokenizer != "stack" and self.architecture != "set_vit":
            raise ConfigError(f"{name}, but only 'set_vit' has tokenizer {self.tokenizer!r}: leave it out.")
        if self.time_token == "zero" and self.architecture == "unet":
            raise ConfigError(
                f"{name}, which has no tokens between its layers: time_token may be 'none' or 'timestep'."
            )
        if (self.architecture == "class_label") != bool(self.num_classes):
            raise ConfigError(
                f"{name} and num_classes is {self.num_classes}: set num_classes to the number of training classes for "
                "'class_label', and to 0 for everything else."
            )
        if self.condition != "support":
            defaults = {"context": "deterministic", "time_token": "none", "projection_dim": 0, "head_hidden_dim": 0}
            for option, default in defaults.items():
                if getattr(self, option) != default:
                    raise ConfigError(
                        f"{name}, which encodes no set, but {option} is {getattr(self, option)!r}: leave it at "
                        f"{default!r}, or take a set encoder."
                    )
        if self.architecture == "none" and self.context_dropout:
            raise ConfigError(f"{name}, so that there is no context to drop: context_dropout must be 0.")

    @property
    def condition(self) -> Literal["support", "label"] | None:
        """What a generated image is conditioned on; None for an unconditional model."""
        if self.architecture == "class_label":
            return "label"
        return None if self.architecture == "none" else "support"

    @property
    def output_dim(self) -> int:
        """Width of what the encoder makes of a set."""
        return self.projection_dim or self.dim

    @property
    def context_dim(self) -> int:
        """Width of the context that conditions the denoiser; a variational one's is `dim`, without any it is 0."""
        if self.architecture == "none":
            return 0
        return self.output_dim if self.context == "deterministic" else self.dim

    @property
    def fills_slots(self) -> bool:
        """Whether zero images are put where a set has fewer images than there are slots."""
        return self.architecture == "vit" or (self.architecture == "set_vit" and self.tokenizer != "per_image_mean")

    @property
    def weights_state_set_size(self) -> bool:
        """Whether the set size can be read off the weights."""
        return self.architecture == "set_vit" and self.tokenizer == "stack"

    @property
    def has_patches(self) -> bool:
        """Whether the encoder cuts images into patches."""
        return self.architecture in ("set_vit", "vit", "set_tokens")

    @property
    def encodes_each(self) -> bool:
        """Whether every image of a set is encoded once, for all images that are conditioned on it."""
        return self.architecture == "set_tokens"
