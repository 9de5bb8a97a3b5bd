"""Pictures of images: as uint8, as grids of sets, as PNG files."""

from __future__ import annotations

import os

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lightning_vfs.core.errors import DataError
from lightning_vfs.core.files import local_path, replacing

PAPER = 200
"""Grey between images, visible next to white and black ones."""


def sample_grid(support: Tensor | None, generated: Tensor, min_size: int = 48) -> Tensor:
    """Picture of one row per class: its support, a dark line, and the images generated from it.

    Args:
        support: (r, k, c, h, w) in [-1, 1], c = 1 or 3; None for generated images alone.
        generated: (r, m, c, h, w) in [-1, 1].
        min_size: smaller images are enlarged by a whole factor, until they have this many pixels a side.

    Returns:
        uint8 (3, H, W).
    """
    picture = _block(generated, min_size)
    if support is not None:
        line = torch.zeros(3, picture.shape[1], 4, dtype=torch.uint8)
        picture = torch.cat([_block(support, min_size), pad(line, (6, 6), value=PAPER), picture], dim=2)
    return pad(picture, (2, 2, 2, 2), value=PAPER)


def with_caption(picture: Tensor, text: str) -> Tensor:
    """The picture, uint8 (3, H, W), over a line of text."""
    font = ImageFont.load_default(size=12)
    width = max(picture.shape[2], int(font.getlength(text)) + 8)
    page = Image.new("RGB", (width, picture.shape[1] + 18), (PAPER,) * 3)
    page.paste(to_pil_image(picture), (0, 0))
    ImageDraw.Draw(page).text((4, picture.shape[1] + 1), text, fill="black", font=font)
    return pil_to_tensor(page)


def _block(images: Tensor, min_size: int) -> Tensor:
    """Images (r, m, c, h, w) side by side, uint8 (3, H, W)."""
    pixels = to_uint8(images).cpu().expand(-1, -1, 3, -1, -1)
    factor = -(-min_size // min(images.shape[-2:]))
    pixels = pixels.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return rearrange(pad(pixels, (2, 2, 2, 2), value=PAPER), "r m c h w -> c (r h) (m w)")


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, rounded to the nearest level."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_image(image: Tensor) -> Image.Image:
    """A picture for Pillow, of one image or of a grid.

    Args:
        image: (c, h, w), c = 1 (grey) or 3 (RGB): floats in [-1, 1], as `sample` returns, or uint8, as `sample_grid`.

    Raises:
        DataError: another shape.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(
            f"An image is a tensor (c, h, w) with 1 or 3 channels; got the shape {tuple(image.shape)}. Take one image "
            "of a batch (images[0]), or draw all of them by sample_grid."
        )
    return to_pil_image(to_uint8(image).cpu() if image.is_floating_point() else image.cpu())


def save_png(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write an image or a grid as PNG, all of it or nothing: a run that is killed leaves no half of a picture.

    Args:
        image: as for `to_image`.
        path: the file; its folder is made if necessary.

    Raises:
        DataError: another shape.
    """
    picture = to_image(image)
    with replacing(local_path(path, "The picture"), sync=False) as temporary:
        picture.save(temporary, format="PNG")
