"""lightning-vfs sample: images of a class, from a folder of a few of its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from lightning_vfs.callbacks.evaluation import to_uint8
from lightning_vfs.callbacks.grids import sample_grid, save_png
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.data import load_support
from lightning_vfs.modules import VFSDDPM


def sample(
    support: str,
    out: str,
    ckpt_path: str | None = None,
    pretrained: str | None = None,
    num_images: int = 24,
    steps: int = 50,
    sampler: Literal["ddim", "ddpm"] = "ddim",
    eta: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    framework: Literal["torch", "jax"] = "torch",
) -> None:
    """Generate images of the class that a folder of images shows.

    Writes `0000.png`, `0001.png`, ... and `grid.png` (the support on the left).

    Args:
        support: folder with 1 to k images of one class.
        out: folder for the images; made if need be.
        ckpt_path: a Lightning checkpoint; or give `pretrained`.
        pretrained: a folder with model.safetensors and config.json, or a hub id.
        num_images: images to generate.
        steps: diffusion steps to take.
        sampler: ddim or ddpm.
        eta: of DDIM, 0 (deterministic) to 1.
        seed: seed of the noise.
        device: auto, cpu, cuda, cuda:1, ...; of torch alone, JAX takes all devices that it finds.
        framework: torch or jax; the images are the same, to rounding.
    """
    if (ckpt_path is None) == (pretrained is None):
        raise ConfigError("Give either --ckpt_path FILE or --pretrained FOLDER, to say which model generates.")
    if num_images < 1:
        raise ConfigError(f"--num_images is {num_images}; it must be at least 1.")
    if framework == "jax" and device != "auto":
        raise ConfigError(f"--device {device} is torch's; JAX takes all devices that it finds (JAX_PLATFORMS chooses).")
    model = VFSDDPM.load_from_checkpoint(ckpt_path) if ckpt_path else VFSDDPM.from_pretrained(str(pretrained))
    sets = model.config.sets
    images = load_support(support, sets.image_size, sets.channels)
    draw = _with_jax if framework == "jax" else _with_torch
    how = {"num_images": num_images, "steps": steps, "sampler": sampler, "seed": seed, "eta": eta}
    generated = draw(model, device, images, how)
    folder = Path(out)
    for i, image in enumerate(to_uint8(generated)):
        save_png(image, folder / f"{i:04d}.png")
    save_png(_picture(images, generated), folder / "grid.png")
    print(f"{num_images} images and grid.png of {len(images)} support images: {folder}")


def _with_torch(model: VFSDDPM, device: str, images: Tensor, how: dict[str, Any]) -> Tensor:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval().sample(images, **how).cpu()


def _with_jax(model: VFSDDPM, device: str, images: Tensor, how: dict[str, Any]) -> Tensor:
    try:
        import jax

        from lightning_vfs.flax import FlaxVFSDDPM
    except ImportError as error:
        raise ConfigError("--framework jax needs jax and flax: pip install 'lightning_vfs[jax]'.") from error
    generated = FlaxVFSDDPM.from_torch(model).sample(images.numpy(), **how, devices=jax.devices())
    return torch.from_numpy(np.array(generated))


def _picture(support: Tensor, generated: Tensor, per_row: int = 8) -> Tensor:
    """Support (k, c, h, w) at the top left, generated images (m, c, h, w) in rows on the right: uint8 (3, H, W)."""
    rows = -(-len(generated) // per_row)
    left = support.new_ones(rows, *support.shape)
    left[0] = support
    right = generated.new_ones(rows * per_row, *generated.shape[1:])
    right[: len(generated)] = generated
    return sample_grid(left, right.unflatten(0, (rows, per_row)))


def run(args: list[str]) -> None:
    """Parse the arguments and sample."""
    auto_cli(sample, args=args, prog="lightning-vfs sample", as_positional=False)
