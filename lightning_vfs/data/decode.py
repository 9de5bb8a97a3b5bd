"""Image files to pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lightning_vfs.core.errors import DataError

DECODING = 1
"""Version of what this module makes of a file; raise it when the pixels change."""


@cache
def extensions() -> frozenset[str]:
    """Extensions, in lower case with the dot, of the formats that Pillow reads (torchvision's are among them)."""
    return frozenset(ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def is_image(path: Path) -> bool:
    """Whether the name is that of an image, and not hidden."""
    return path.suffix.lower() in extensions() and not path.name.startswith(".")


def decode(path: Path, image_size: int, channels: int) -> np.ndarray:
    """One image: upright by its EXIF orientation, on white where transparent, the centre square, resized.

    Returns:
        uint8 (channels, image_size, image_size).

    Raises:
        DataError: the file is no image that Pillow reads, or damaged.
    """
    try:
        with Image.open(path) as file:
            image = _as_eight_bits(ImageOps.exif_transpose(file), channels)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise DataError(f"{path} cannot be read as an image: {error or type(error).__name__}") from error
    # Cropping before resizing is the same as resizing the shorter side first, for less work.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    square = square.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(image_size, image_size, channels).transpose(2, 0, 1)


def decode_all(paths: Sequence[Path], image_size: int, channels: int) -> np.ndarray:
    """Decode many images, several at once.

    Returns:
        uint8 (N, channels, image_size, image_size).

    Raises:
        DataError: some cannot be read; all are tried, so that the message can name them together.
    """
    images = np.empty((len(paths), channels, image_size, image_size), dtype=np.uint8)

    def fill(row: int) -> DataError | None:
        try:
            images[row] = decode(paths[row], image_size, channels)
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = [error for error in pool.map(fill, range(len(paths))) if error]
    if errors:
        more = f"\n... and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise DataError(
            f"{len(errors)} of {len(paths)} images cannot be read. Replace or remove:\n"
            + "\n".join(map(str, errors[:10]))
            + more
        ) from errors[0]
    return images


def _as_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers, whose black and white are not known; save it with 8 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255 instead of scaling
        wide = np.asarray(image).astype(np.float64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("it holds numbers beyond 16 bits; save it with 8 or 16")
        image = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("L" if channels == 1 else "RGB")
