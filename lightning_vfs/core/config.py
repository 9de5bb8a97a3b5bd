"""Configuration of a few-shot diffusion model: plain values, checked when built, shared by torch and JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from lightning_vfs.core.errors import ConfigError

HeldOut = Literal["zero_slot", "drop", "none"]
Tokenizer = Literal["stack", "per_image_mean", "per_slot_mean"]
Pool = Literal["cls", "mean", "sum", "patches", "none"]
TimeToken = Literal["none", "zero", "timestep"]
ContextKind = Literal["deterministic", "variational"]
Film = Literal["add", "concat"]
Schedule = Literal["linear", "cosine"]
Prediction = Literal["eps", "x_0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]
Loss = Literal["mse", "rescaled_mse", "kl", "rescaled_kl"]


def _check_choices(config: Any) -> None:
    """Raise ConfigError for a field whose value is not among its Literal's choices."""
    for name, hint in get_type_hints(type(config)).items():
        choices = get_args(hint)
        value = getattr(config, name)
        if choices and value not in choices:
            allowed = ", ".join(map(repr, choices))
            raise ConfigError(f"{type(config).__name__}.{name} is {value!r}; allowed: {allowed}.")


def _check_at_least(config: Any, minimum: int, *names: str) -> None:
    """Raise ConfigError for a field that is no whole number of at least `minimum`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ConfigError(
                f"{type(config).__name__}.{name} is {value!r}; it must be a whole number of at least {minimum}."
            )


def _check_mlp(config: Any) -> None:
    """Raise ConfigError for an mlp_ratio that is not above 0, or a dropout out of [0, 1)."""
    name = type(config).__name__
    if config.mlp_ratio <= 0:
        raise ConfigError(f"{name}.mlp_ratio is {config.mlp_ratio}; it must be above 0.")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"{name}.dropout is {config.dropout}; it must be at least 0 and below 1.")


@dataclass(frozen=True)
class SetConfig:
    """What a set of images is, and what leave-one-out does with the image that is generated.

    Args:
        set_size: images of one class per set (n), at least 2.
        image_size: height and width of an image in pixels.
        channels: channels of an image, 1 (grey) or 3 (RGB).
        held_out: `zero_slot` (the others, then a zero image in the last slot), `drop` (only the others) or `none`
            (the image stays in its own context).

    Raises:
        ConfigError: a value is not allowed.
    """

    set_size: int = 6
    image_size: int = 32
    channels: int = 3
    held_out: HeldOut = "zero_slot"

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(self, 2, "set_size")
        _check_at_least(self, 1, "image_size")
        if self.channels not in (1, 3):
            raise ConfigError(f"SetConfig.channels is {self.channels!r}; allowed: 1 (grey) or 3 (RGB).")

    @property
    def slots(self) -> int:
        """Images that the encoder stacks."""
        return self.set_size - 1 if self.held_out == "drop" else self.set_size

    @property
    def shots(self) -> int:
        """Images that condition one generation in training, and the most that a support may hold."""
        return self.set_size if self.held_out == "none" else self.set_size - 1


@dataclass(frozen=True)
class EncoderConfig:
    """The set encoder (sViT): a transformer over the patches of a stacked set.

    Args:
        dim: width of the tokens and of the context.
        depth: transformer layers.
        heads: attention heads.
        dim_head: width of one attention head.
        mlp_ratio: hidden width of the feed-forward layers over `dim`.
        patch_size: height and width of a patch in pixels.
        tokenizer: `stack` (the set's images as channels of one patch), `per_image_mean` (each image's patches
            embedded alone, then averaged over the images given; independent of the set size) or `per_slot_mean` (the
            same over all slots, with zero images in those that are left).
        pool: what becomes the context: the class token, the mean or sum of all tokens, the patch tokens alone
            (`patches`) or every token (`none`). Of tokens, each goes through the head, and a `film` denoiser takes
            their mean.
        time_token: `none`, `zero` (a token without a timestep, as the first JAX system had it), or `timestep` (the
            encoder sees t: in training and at every sampling step).
        dropout: probability of dropout in the encoder, 0 to below 1.
        head_hidden_dim: hidden width of a head of two layers; 0 for a head of one.
        projection_dim: width of the context after a projection of three layers; 0 for none.
        projection_hidden_dim: hidden width of that projection; 0 for `projection_dim`.
        context: `deterministic`, or `variational` (Gaussian with KL to N(0, I)).
        kl_weight: weight of that KL in the loss (bits per context dimension).

    Raises:
        ConfigError: a value is not allowed.
    """

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

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(self, 1, "dim", "depth", "heads", "dim_head", "patch_size")
        _check_at_least(self, 0, "head_hidden_dim", "projection_dim", "projection_hidden_dim")
        _check_mlp(self)
        if self.projection_hidden_dim and not self.projection_dim:
            raise ConfigError(
                f"EncoderConfig.projection_hidden_dim is {self.projection_hidden_dim}, but there is no projection: "
                "set projection_dim too."
            )
        if self.kl_weight < 0:
            raise ConfigError(f"EncoderConfig.kl_weight is {self.kl_weight}; it must be at least 0.")
        if self.time_token == "timestep" and self.dim < 8:
            raise ConfigError(f"EncoderConfig.dim is {self.dim}; time_token `timestep` needs at least 8.")

    @property
    def output_dim(self) -> int:
        """Width of what the encoder makes of a set."""
        return self.projection_dim or self.dim

    @property
    def context_dim(self) -> int:
        """Width of the context that conditions the denoiser; a Gaussian's is `dim`."""
        return self.dim if self.context == "variational" else self.output_dim

    @property
    def fills_slots(self) -> bool:
        """Whether zero images are put where a set has fewer images than there are slots."""
        return self.tokenizer != "per_image_mean"


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoiser (DiT): a transformer over the patches of the noisy image, modulated by timestep and context.

    Args:
        dim: width of the tokens; a multiple of 4 (sine-cosine positions) and of `heads`.
        depth: transformer blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over `dim`.
        patch_size: height and width of a patch in pixels.
        conditioning: `film`, the context modulates every block through adaLN-Zero.
        film: the projected context is added to the timestep embedding (`add`), or both are concatenated and
            projected (`concat`).
        normalize_condition: every block normalises that vector and scales it by a learned `context_scale`.
        dropout: probability of dropout after every attention and in every feed-forward layer, 0 to below 1.
        pad: zero pixels put on every side of the noisy image, and cut off the output; the JAX system takes 2 for
            images of 28.

    Raises:
        ConfigError: a value is not allowed.
    """

    dim: int = 384
    depth: int = 6
    heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 4
    conditioning: Literal["film"] = "film"
    film: Film = "add"
    normalize_condition: bool = False
    dropout: float = 0.0
    pad: int = 0

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(self, 1, "dim", "depth", "heads", "patch_size")
        if self.dim % 4 or self.dim % self.heads:
            raise ConfigError(
                f"DenoiserConfig.dim is {self.dim} with {self.heads} heads; "
                "it must be a multiple of 4 and of the number of heads."
            )
        _check_at_least(self, 0, "pad")
        _check_mlp(self)


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process.

    Args:
        timesteps: number of diffusion steps T.
        schedule: `linear` (DDPM) or `cosine` (improved DDPM).
        prediction: what the denoiser's output means: the noise (`eps`), the clean image (`x_0`), or the velocity (`v`).
        variance: of the reverse process: `fixed_small` (posterior variance), `fixed_large` (beta), or
            `learned_range` (the denoiser has 2c output channels, trained with the hybrid loss).
        clip_denoised: predictions of x_0 are clipped to [-1, 1] when sampling.
        rescale_timesteps: the denoiser is given t * 1000 / T in place of t.
        loss: `mse`, the mean squared error of the prediction, with `learned_range` plus the variational bound;
            `rescaled_mse`, the same with T / 1000 times the bound (the hybrid loss of improved DDPM); `kl`, the bound
            alone; `rescaled_kl`, T times it.

    Raises:
        ConfigError: a value is not allowed, or the schedule has a beta above 1 (with the smallest number of
            timesteps that works).
    """

    timesteps: int = 1000
    schedule: Schedule = "cosine"
    prediction: Prediction = "eps"
    variance: Variance = "fixed_small"
    clip_denoised: bool = True
    rescale_timesteps: bool = False
    loss: Loss = "rescaled_mse"

    def __post_init__(self) -> None:
        from lightning_vfs.core.schedules import betas_for

        _check_choices(self)
        _check_at_least(self, 1, "timesteps")
        betas_for(self.schedule, self.timesteps)


@dataclass(frozen=True)
class VFSConfig:
    """All that defines a few-shot diffusion model: sets, encoder, denoiser, diffusion.

    Raises:
        ConfigError: parts that do not fit each other, such as a patch size that does not divide the image size.
    """

    sets: SetConfig = field(default_factory=SetConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        for part, size in ((self.encoder, self.sets.image_size), (self.denoiser, self.padded_size)):
            if size % part.patch_size:
                padded = "" if size == self.sets.image_size else f" with {self.denoiser.pad} pixels on every side"
                raise ConfigError(
                    f"{type(part).__name__}.patch_size is {part.patch_size}, but images are {size} x {size}{padded}: "
                    f"it must divide {size} ({_divisors(size)})."
                )

    @property
    def patch_dim(self) -> int:
        """Width of SPT's LayerNorm and input of its projection."""
        from lightning_vfs.core.contract import patch_dim

        return patch_dim(self)

    @property
    def padded_size(self) -> int:
        """Height and width of the images that the denoiser cuts into patches."""
        return self.sets.image_size + 2 * self.denoiser.pad

    @property
    def out_channels(self) -> int:
        """Channels of the denoiser's output: c, or 2c with a learned variance."""
        return self.sets.channels * (2 if self.diffusion.variance == "learned_range" else 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VFSConfig:
        """Build from nested plain values, as `to_dict` gives them; what is absent keeps its default.

        Raises:
            ConfigError: an unknown name, or a value that is not allowed.
        """
        parts = {f.name: get_type_hints(cls)[f.name] for f in fields(cls)}
        _refuse_unknown("VFSConfig", values, parts)
        built = {}
        for name, part in parts.items():
            given = values.get(name, {})
            if isinstance(given, part):
                built[name] = given
                continue
            if not isinstance(given, Mapping):
                raise ConfigError(f"VFSConfig.{name} is {given!r}; it must be a mapping of names to values.")
            _refuse_unknown(part.__name__, given, [f.name for f in fields(part)])
            built[name] = part(**given)
        return cls(**built)

    @classmethod
    def from_jax(cls, cfg: Mapping[str, Any]) -> VFSConfig:
        """The configuration of the JAX system's flat `cfg`, of its first state or its last.

        Raises:
            CheckpointError: an option that this package does not have; the message names it.
        """
        from lightning_vfs.core.jax_config import config_from_jax

        return config_from_jax(cfg)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values (str, int, float, bool), as `from_dict` takes them."""
        return asdict(self)


def _refuse_unknown(owner: str, given: Mapping[str, Any], known: Any) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{owner} has no {', '.join(unknown)}; it knows {', '.join(known)}.")


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
