"""Configuration of a few-shot diffusion model: plain values, checked when built, shared by torch and JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_type_hints

from lightning_vfs.core.checks import check_at_least, check_choices, is_path
from lightning_vfs.core.denoiser_config import DenoiserConfig
from lightning_vfs.core.diffusion_config import DiffusionConfig
from lightning_vfs.core.encoder_config import POOLS, TOKEN_POOLS, EncoderConfig
from lightning_vfs.core.errors import ConfigError

HeldOut = Literal["zero_slot", "drop", "none"]
EncoderInput = Literal["images", "latents"]


DATA_FIELDS = ("set_size", "image_size", "channels")
"""Fields on which data and model must agree; set once, on the data."""


@dataclass(frozen=True)
class SetConfig:
    """What a set of images is, and what leave-one-out does with the image that is generated.

    Args:
        set_size: images of one class per set (n), at least 2.
        image_size: height and width of an image in pixels.
        channels: channels of an image, 1 (grey) or 3 (RGB).
        held_out: `zero_slot` (the others, then a zero image in the last slot), `drop` (only the others) or `none`
            (the image stays in its own context).
        random_shots: training draws for every set how many images, 1 to k, its contexts are made from (the rest are
            zero images, or left out of a mean), so that one model serves 1 to k shots.

    Raises:
        ConfigError: a value is not allowed.
    """

    set_size: int = 6
    image_size: int = 32
    channels: int = 3
    held_out: HeldOut = "zero_slot"
    random_shots: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 2, "set_size")
        check_at_least(self, 1, "image_size")
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
class LatentConfig:
    """Diffusion in the latents of a frozen autoencoder (Rombach et al. 2022, arXiv 2112.10752) instead of pixels.

    Args:
        autoencoder: local folder of a diffusers AutoencoderKL (`config.json` and weights); empty for pixels.
        channels: of a latent, the autoencoder's `latent_channels`.
        downsampling: pixels of an image's side for one of a latent's.
        scale: latents are multiplied by it, so that their variance is about 1; the autoencoder's `scaling_factor`.
        encoder_input: what the set encoder sees, `images` or `latents`.

    Raises:
        ConfigError: a value is not allowed.
    """

    autoencoder: str = ""
    channels: int = 4
    downsampling: int = 8
    scale: float = 0.18215
    encoder_input: EncoderInput = "images"

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "channels", "downsampling")
        if self.scale <= 0:
            raise ConfigError(f"LatentConfig.scale is {self.scale}; it must be above 0.")
        if self.encoder_input == "latents" and not self.autoencoder:
            raise ConfigError(
                "LatentConfig.encoder_input is 'latents', but there is no autoencoder: set latent.autoencoder to the "
                "folder of a diffusers AutoencoderKL, or encoder_input to 'images'."
            )


@dataclass(frozen=True)
class VFSConfig:
    """Everything that defines a few-shot diffusion model: sets, encoder, denoiser, diffusion and, if any, latents.

    Raises:
        ConfigError: parts that do not fit each other, such as a patch size that does not divide the image size.
    """

    sets: SetConfig = field(default_factory=SetConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)

    def __post_init__(self) -> None:
        for name, part in _parts().items():
            if not isinstance(given := getattr(self, name), part):
                raise ConfigError(
                    f"VFSConfig.{name} is a {type(given).__name__}, but must be of the class {part.__name__}: "
                    f"VFSConfig.from_dict({{{name!r}: {{...}}}}) takes plain values."
                )
        self._check_latent()
        if self.encoder.has_patches:
            self._check_patches(self.encoder, self.encoder_size, 0)
        if self.encoder.architecture == "unet":
            self._check_levels(self.encoder, self.encoder_size)
        if self.denoiser.architecture == "dit":
            self._check_patches(self.denoiser, self.padded_size, self.denoiser.pad)
        elif self.denoiser.architecture == "unet":
            self._check_levels(self.denoiser, self.denoiser_size)
        if self.denoiser.conditioning == "lag":
            self._check_tokens()

        if self.diffusion.contrastive_weight and self.encoder.condition is None:
            raise ConfigError(
                f"DiffusionConfig.contrastive_weight is {self.diffusion.contrastive_weight}, but encoder.architecture "
                "'none' has no conditions to tell apart: set it to 0."
            )

    def _check_latent(self) -> None:
        latent, size = self.latent, self.sets.image_size
        if latent.autoencoder and size % latent.downsampling:
            raise ConfigError(
                f"LatentConfig.downsampling is {latent.downsampling}, but images are {size} x {size}: it must divide "
                f"{size} ({_divisors(size)})."
            )
        if latent.autoencoder and self.diffusion.clip_denoised:
            raise ConfigError(
                "DiffusionConfig.clip_denoised is true, but latents are not confined to [-1, 1]: set "
                "diffusion.clip_denoised to false with latent.autoencoder."
            )

    def _check_patches(self, part: EncoderConfig | DenoiserConfig, size: int, pad: int) -> None:
        if size % part.patch_size:
            padded = f" with {pad} pixels on every side" if pad else ""
            raise ConfigError(
                f"{type(part).__name__}.patch_size is {part.patch_size}, but images are {size} x {size}{padded}: "
                f"it must divide {size} ({_divisors(size)})."
            )

    def _check_levels(self, part: EncoderConfig | DenoiserConfig, size: int) -> None:
        sizes = [size >> level for level in range(len(part.channel_mult))]
        if size % (1 << (len(sizes) - 1)) or not sizes[-1]:
            raise ConfigError(
                f"{type(part).__name__}.channel_mult has {len(sizes)} levels, but images are {size} x {size}: each "
                "level after the first halves them, which must leave whole numbers. Take fewer levels."
            )
        strange = [resolution for resolution in part.attention_resolutions if resolution not in sizes]
        if strange:
            raise ConfigError(
                f"{type(part).__name__}.attention_resolutions has {', '.join(map(str, strange))}, but the feature maps "
                f"are {', '.join(map(str, sizes))} pixels high."
            )

    def _check_tokens(self) -> None:
        """Refuse cross-attention to a single token, to which every attention is the same."""
        encoder, wanted = self.encoder, self.denoiser.context_tokens
        if encoder.condition != "support":
            raise ConfigError(
                f"DenoiserConfig.conditioning is 'lag', but encoder.architecture {encoder.architecture!r} makes no "
                "tokens to attend to: set conditioning to 'film'."
            )
        if encoder.architecture not in POOLS:
            if wanted < 2:
                raise ConfigError(
                    f"DenoiserConfig.conditioning is 'lag' and context_tokens is {wanted}, but how many tokens "
                    f"{encoder.architecture} makes is not known here: set context_tokens to 2 or more, and to a number "
                    "that divides them."
                )
            return
        if encoder.encodes_each and is_path(self.denoiser.architecture):
            raise ConfigError(
                f"DenoiserConfig.conditioning is 'lag' and encoder.architecture {encoder.architecture!r}, whose tokens "
                f"are shared by the images of a set, but the denoiser is {self.denoiser.architecture!r}, which takes a "
                "context of its own for every image: set conditioning to 'film', or take another encoder."
            )
        if encoder.pool not in TOKEN_POOLS:
            tokens = [pool for pool in POOLS[encoder.architecture] if pool in TOKEN_POOLS]
            raise ConfigError(
                f"DenoiserConfig.conditioning is 'lag', but encoder.pool {encoder.pool!r} leaves one vector"
                f"{' of an image' if encoder.encodes_each else ''}, to which every attention would be the same: set "
                f"encoder.pool to {' or '.join(map(repr, tokens))}, or conditioning to 'film'."
            )
        if 1 in (wanted, self.encoder_tokens):
            raise ConfigError(
                f"DenoiserConfig.conditioning is 'lag', but of {self.encoder_tokens} tokens that the encoder makes "
                f"{wanted or 1} is left, to which every attention would be the same: take smaller patches, or another "
                "context_tokens."
            )
        if wanted and self.encoder_tokens % wanted:
            raise ConfigError(
                f"DenoiserConfig.context_tokens is {wanted}, but the encoder makes {self.encoder_tokens} tokens: it "
                f"must divide them ({_divisors(self.encoder_tokens)})."
            )

    @property
    def patch_dim(self) -> int | None:
        """Width of SPT's LayerNorm and input of its projection: patch_size**2 * slots * channels.

        There is 1 slot for any tokenizer except `stack`. None for an encoder without patches.
        """
        if not self.encoder.has_patches:
            return None
        slots = self.sets.slots if self.encoder.weights_state_set_size else 1
        return self.encoder.patch_size**2 * slots * self.encoder_channels

    @property
    def padded_size(self) -> int:
        """Height and width of the images that the denoiser cuts into patches."""
        return self.denoiser_size + 2 * self.denoiser.pad

    @property
    def denoiser_size(self) -> int:
        """Height and width of what is diffused: images, or latents."""
        return self.sets.image_size // (self.latent.downsampling if self.latent.autoencoder else 1)

    @property
    def denoiser_channels(self) -> int:
        """Channels of what is diffused: images, or latents."""
        return self.latent.channels if self.latent.autoencoder else self.sets.channels

    @property
    def out_channels(self) -> int:
        """Channels of the denoiser's output: c, or 2c with a learned variance."""
        return self.denoiser_channels * (2 if self.diffusion.variance == "learned_range" else 1)

    @property
    def encoder_size(self) -> int:
        """Height and width of what the set encoder sees: images, or latents."""
        return self.denoiser_size if self.latent.encoder_input == "latents" else self.sets.image_size

    @property
    def encoder_channels(self) -> int:
        """Channels of what the set encoder sees: images, or latents."""
        return self.denoiser_channels if self.latent.encoder_input == "latents" else self.sets.channels

    @property
    def encoder_tokens(self) -> int:
        """Tokens that the encoder makes of a full set before `film` takes their mean; 1 if it pools them itself.

        Of `set_tokens`, those of one image.
        """
        encoder = self.encoder
        if encoder.architecture not in POOLS or encoder.pool not in TOKEN_POOLS:
            return 1
        if encoder.architecture == "unet":
            return (self.encoder_size >> (len(encoder.channel_mult) - 1)) ** 2
        patches = (self.encoder_size // encoder.patch_size) ** 2
        if encoder.architecture == "vit" and encoder.pool == "none":
            patches *= self.sets.slots
        return patches + (0 if encoder.pool in ("patches", "mean_patch", "sum_patch") else self.num_extra_tokens)

    @property
    def num_extra_tokens(self) -> int:
        """Tokens before those of the patches: class token and, if there is one, time token."""
        return 1 if self.encoder.time_token == "none" else 2

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """Shape of what the encoder makes of one set: (d,), with `lag` (tokens, d); d = `encoder.output_dim`.

        Of `set_tokens` with `lag`, of one image.
        """
        return (*self._tokens_shape, self.encoder.output_dim)

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Shape of the context of one image: (d,), with `lag` (tokens, d), without any conditioning ().

        Of `set_tokens` with `lag`, one image's part in the contexts of the others.
        """
        return (*self._tokens_shape, self.encoder.context_dim) if self.encoder.context_dim else ()

    @property
    def _tokens_shape(self) -> tuple[int, ...]:
        lag = self.denoiser.conditioning == "lag"
        return (self.denoiser.context_tokens or self.encoder_tokens,) if lag else ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VFSConfig:
        """Build from nested plain values, as `to_dict` gives them; what is absent keeps its default.

        Raises:
            ConfigError: an unknown name, or a value that is not allowed.
        """
        parts = _parts()
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
    def for_data(cls, values: Mapping[str, Any], data: Mapping[str, Any]) -> VFSConfig:
        """As `from_dict`, with the set size, image size and channels that the data has (`DATA_FIELDS`)."""
        sets = {**values.get("sets", {}), **{name: data[name] for name in DATA_FIELDS}}
        return cls.from_dict({**values, "sets": sets})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values (str, int, float, bool, lists of int), as `from_dict` takes them."""
        parts: dict[str, dict[str, Any]] = asdict(self)
        return {
            part: {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
            for part, values in parts.items()
        }


@cache
def _parts() -> dict[str, Any]:
    """The parts of a configuration, by their names."""
    hints = get_type_hints(VFSConfig)
    return {f.name: hints[f.name] for f in fields(VFSConfig)}


def _refuse_unknown(owner: str, given: Mapping[str, Any], known: Any) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{owner} has no {', '.join(unknown)}; it knows {', '.join(known)}.")


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
