"""Configuration of a few-shot diffusion model: plain values, checked when built, shared by torch and JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from lightning_vfs.core.errors import ConfigError

HeldOut = Literal["zero_slot", "drop", "none"]
Tokenizer = Literal["stack", "per_image_mean"]
Pool = Literal["cls", "mean", "sum", "none"]
TimeToken = Literal["none", "zero", "timestep"]
ContextKind = Literal["deterministic", "variational"]
Film = Literal["add", "concat"]
Schedule = Literal["linear", "cosine"]
Prediction = Literal["eps", "x_0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]


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
        tokenizer: `stack` (the set's images as channels of one patch) or `per_image_mean` (each image's patches
            embedded alone, then averaged over the images given; independent of the set size).
        pool: what becomes the context: the class token, the mean or sum of all tokens, or `none` (every token goes
            through the head; a `film` denoiser then takes their mean).
        time_token: `none`, `zero` (a token without a timestep, as the first JAX system had it), or `timestep` (the
            encoder sees t: in training and at every sampling step).
        dropout: probability of dropout in the encoder, 0 to below 1.
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
    context: ContextKind = "deterministic"
    kl_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(self, 1, "dim", "depth", "heads", "dim_head", "patch_size")
        if self.mlp_ratio <= 0:
            raise ConfigError(f"EncoderConfig.mlp_ratio is {self.mlp_ratio}; it must be above 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"EncoderConfig.dropout is {self.dropout}; it must be at least 0 and below 1.")
        if self.kl_weight < 0:
            raise ConfigError(f"EncoderConfig.kl_weight is {self.kl_weight}; it must be at least 0.")
        if self.context == "variational" and self.pool == "none":
            raise ConfigError(
                "EncoderConfig.context is 'variational' with pool 'none': the Gaussian is over one context vector; "
                "set pool to 'cls', 'mean' or 'sum'."
            )
        if self.time_token == "timestep" and self.dim < 8:
            raise ConfigError(f"EncoderConfig.dim is {self.dim}; time_token `timestep` needs at least 8.")


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

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_at_least(self, 1, "dim", "depth", "heads", "patch_size")
        if self.dim % 4 or self.dim % self.heads:
            raise ConfigError(
                f"DenoiserConfig.dim is {self.dim} with {self.heads} heads; "
                "it must be a multiple of 4 and of the number of heads."
            )
        if self.mlp_ratio <= 0:
            raise ConfigError(f"DenoiserConfig.mlp_ratio is {self.mlp_ratio}; it must be above 0.")


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

    Raises:
        ConfigError: a value is not allowed, or the schedule has a beta above 1 (with the smallest number of
            timesteps that works).
    """

    timesteps: int = 1000
    schedule: Schedule = "cosine"
    prediction: Prediction = "eps"
    variance: Variance = "fixed_small"
    clip_denoised: bool = True

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
        size = self.sets.image_size
        for part in (self.encoder, self.denoiser):
            if size % part.patch_size:
                raise ConfigError(
                    f"{type(part).__name__}.patch_size is {part.patch_size}, but images are {size} x {size}: "
                    f"it must divide {size} ({_divisors(size)})."
                )

    @property
    def patch_dim(self) -> int:
        """Width of SPT's LayerNorm and input of its projection."""
        from lightning_vfs.core.contract import patch_dim

        return patch_dim(self)

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
