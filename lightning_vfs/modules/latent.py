"""A frozen autoencoder between images and latents. Its weights are not part of the model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_vfs.core.config import LatentConfig
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.core.files import file_sha256, local_path, read_json

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"

PIXELS_AT_ONCE = 2**20
"""Pixels of all images that go through the autoencoder together: 16 images of 256 x 256, a few GB with Stable
Diffusion's."""


class Autoencoder:
    """Images to latents and back by diffusers' AutoencoderKL, in evaluation mode and always in float32.

    It is not a torch module, so neither checkpoints nor the optimizer of a model that holds it include its weights;
    copies of the model, such as an average of its weights, share it.

    Args:
        config: `autoencoder` is the local folder of the AutoencoderKL. Nothing is downloaded.
        channels: c of the images, 1 or 3. Grey ones are repeated for an autoencoder of RGB images, and what it decodes
            is averaged over the channels.

    Attributes:
        folder: of the autoencoder.

    Raises:
        ConfigError: diffusers is not installed, or the autoencoder's images or latents are not those of `config`.
        CheckpointError: the folder is not there, is not an AutoencoderKL's, or is damaged.
    """

    def __init__(self, config: LatentConfig, channels: int) -> None:
        self._folder = self.folder = local_path(config.autoencoder, "latent.autoencoder")
        self._channels = channels
        self._scale = config.scale
        self._downsampling = config.downsampling
        self._vae = _load(self._folder)
        self._shift = self._vae.config.shift_factor or 0.0
        self._check(config)

    def __deepcopy__(self, memo: dict[int, Any]) -> Autoencoder:
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the latents besides the weights, as plain values."""
        names = ("in_channels", "latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups")
        own = {name: self._vae.config.get(name) for name in names}
        return {**own, "scale": self._scale, "shift": self._shift, "file": file_sha256(self._folder / CONFIG)}

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the file that the weights came from."""
        return file_sha256(self._folder / WEIGHTS)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b latent_c latent_h latent_w"]:
        """Latents (b, latent.channels, h / f, w / f), of variance about 1, of images (b, c, h, w) in [-1, 1].

        Each is the mode of its posterior: the same image has the same latent. Without gradient.
        """

        def latents(chunk: Tensor) -> Tensor:
            return (self._vae.encode(chunk).latent_dist.mode() - self._shift) * self._scale

        height, width = images.shape[-2:]
        found = self._in_chunks(latents, images.expand(-1, self._vae.config.in_channels, -1, -1), height * width)
        return found.contiguous()  # sums over them would round otherwise than over latents from the cache

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b latent_c latent_h latent_w"]) -> Float[Tensor, "b c h w"]:
        """Images (b, c, h, w), clamped to [-1, 1], of latents (b, latent.channels, h / f, w / f). Without gradient."""

        def images(chunk: Tensor) -> Tensor:
            decoded: Tensor = self._vae.decode(chunk / self._scale + self._shift).sample
            return (decoded.mean(1, keepdim=True) if self._channels == 1 else decoded).clamp(-1, 1)

        height, width = latents.shape[-2:]
        return self._in_chunks(images, latents, height * width * self._downsampling**2)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], x: Tensor, pixels: int) -> Tensor:
        """`function` of x (b, ...), which stands for images of that many pixels, in float32 on x's device."""
        if self._vae.device != x.device:
            # The first batch may be one of validation, and training cannot use tensors made in inference mode.
            with torch.inference_mode(False):
                self._vae.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([function(chunk.float()) for chunk in x.split(max(1, PIXELS_AT_ONCE // pixels))])

    def _check(self, config: LatentConfig) -> None:
        """Raise ConfigError unless the autoencoder's images and latents are those that were asked for."""
        found = self._vae.config
        if found.in_channels not in (self._channels, 3) or found.out_channels != found.in_channels:
            raise ConfigError(
                f"The autoencoder {self._folder} takes images of {found.in_channels} channels and gives "
                f"{found.out_channels}, but the images here have {self._channels}: both must be {self._channels}"
                f"{'' if self._channels == 3 else ' or 3'}. Take another autoencoder, or set --data.channels."
            )
        downsampling = 2 ** (len(found.block_out_channels) - 1)
        differences = [
            f"LatentConfig.{name} is {given}, the autoencoder's is {own}: set --model.config.latent.{name} {own}"
            for name, given, own in (
                ("channels", config.channels, found.latent_channels),
                ("downsampling", config.downsampling, downsampling),
                ("scale", config.scale, found.scaling_factor),
            )
            if not math.isclose(given, own, rel_tol=1e-4)
        ]
        if differences:
            raise ConfigError(f"The autoencoder {self._folder} has other latents. {'; '.join(differences)}.")


def _load(folder: Path) -> Any:
    """The AutoencoderKL of a local folder, frozen, float32, on the CPU.

    Raises:
        ConfigError: diffusers is not installed.
        CheckpointError: the folder is not there, is not an AutoencoderKL's, or is damaged.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ConfigError(
            f"LatentConfig.autoencoder needs diffusers: pip install 'lightning_vfs[latent]' ({error})."
        ) from error
    _check_files(folder)
    try:
        vae, report = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # of many kinds: damaged weights, other shapes, values that make no network
        raise CheckpointError(
            f"{folder} is damaged, or its {WEIGHTS} and {CONFIG} are not of the same autoencoder: {error}"
        ) from error
    # diffusers leaves tensors that the file lacks at random values, and says so only in its log.
    for keys, problem in ((report["missing_keys"], "lacks"), (report["unexpected_keys"], "should not have")):
        if keys:
            raise CheckpointError(
                f"{folder / WEIGHTS} {problem} {len(keys)} of its tensors, such as {sorted(keys)[0]}: it is damaged, "
                f"or {CONFIG} is of another autoencoder. Save both with AutoencoderKL.save_pretrained."
            )
    return vae.float().eval().requires_grad_(False)


def _check_files(folder: Path) -> None:
    """Raise CheckpointError unless the folder has the two files, and the configuration is an AutoencoderKL's."""
    if not folder.is_dir():
        raise CheckpointError(
            f"There is no folder {folder}: latent.autoencoder is the local folder of a diffusers AutoencoderKL, and "
            "nothing is downloaded. One on the hub is fetched by `hf download NAME --local-dir FOLDER`."
        )
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder} has no {file}: the folder of a diffusers AutoencoderKL, as save_pretrained writes it, has "
                f"both {CONFIG} and {WEIGHTS}. A whole pipeline has such a folder in it, named vae."
            )
    try:
        name = read_json(folder / CONFIG)["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} does not say of what class the model is ({error!r}): it is damaged, or not written by "
            "diffusers. Save it again with AutoencoderKL.save_pretrained."
        ) from error
    if name != "AutoencoderKL":
        raise CheckpointError(
            f"{folder} holds another model, {name}: latent.autoencoder takes the folder of a diffusers AutoencoderKL."
        )
