"""Image files to pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageOps

from lightning_vfs.core.errors import DataError

DECODING = 1
"""Version of the decoded pixels; raise it when they change."""

PILLOW = ".".join(PIL.__version__.split(".")[:2])
"""Pillow's version without its patch level, which does not change pixels."""


FORMATS = frozenset(
    {"AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "JPEGXL", "PCX", "PNG", "PPM", "QOI", "SGI"}
    | {"TGA", "TIFF", "WEBP"}
)
"""Formats of pictures, by Pillow's names; it lists others that it cannot decode by itself, such as HDF5 and EPS."""

HEIC = frozenset([".heic", ".heif"])
"""Suffixes of what Pillow reads with the plugin pillow-heif."""


threads = os.cpu_count()
"""Images that are decoded at once; the processes that fetch batches set it to 1."""


@cache
def extensions() -> frozenset[str]:
    """Suffixes, in lower case with the dot, of the pictures that Pillow reads here."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()  # loads the plugins that come with Pillow
    return frozenset(suffix for suffix, kind in known.items() if kind in FORMATS & Image.OPEN.keys())


def is_image(path: PurePath) -> bool:
    """Whether the name is that of an image, and not hidden."""
    return path.suffix.lower() in extensions() and not path.name.startswith(".")


def decode(path: Path, image_size: int, channels: int) -> np.ndarray:
    """One image: upright by its EXIF orientation, on white where transparent, the centre square, resized.

    Returns:
        uint8 (channels, image_size, image_size).

    Raises:
        DataError: the file is not an image that Pillow reads, or damaged.
    """
    return decode_opened(str(path), lambda: path, image_size, channels)


def decode_opened(name: str, opened: Callable[[], Path | BinaryIO], image_size: int, channels: int) -> np.ndarray:
    """One image that need not be a file of its own, as `decode` does.

    Args:
        name: of the image, for the message.
        opened: a path, or its content; called once.
        image_size, channels: as in `decode`.

    Returns:
        uint8 (channels, image_size, image_size).

    Raises:
        DataError: it is not an image that Pillow reads, or damaged.
    """
    try:
        with Image.open(opened()) as file:
            image = _as_eight_bits(ImageOps.exif_transpose(file), channels)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise DataError(f"{name} cannot be read as an image: {error or type(error).__name__}") from error
    return centre_square(image, image_size)


def centre_square(image: Image.Image, image_size: int) -> np.ndarray:
    """The centre square of an image of 8 bits, resized: uint8 (channels, image_size, image_size)."""
    # Cropping before resizing is the same as resizing the shorter side first, for less work.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    square = square.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(image_size, image_size, -1).transpose(2, 0, 1)


def decode_all(paths: Sequence[Path], image_size: int, channels: int, out: np.ndarray) -> list[DataError | None]:
    """Decode many images, several at once.

    Args:
        paths: files (m).
        image_size, channels: as in `decode`.
        out: uint8 (m, channels, image_size, image_size), which they are written to; zeros for those with an error.

    Returns:
        What is wrong with each file, if anything.
    """
    return decode_rows(lambda row: decode(paths[row], image_size, channels), out)


def decode_rows(decode_row: Callable[[int], np.ndarray], out: np.ndarray) -> list[DataError | None]:
    """Decode the images of all rows of `out`, uint8 (m, c, h, w), several at once; returns what `decode_all` does."""

    def fill(row: int) -> DataError | None:
        try:
            out[row] = decode_row(row)
        except DataError as error:
            return error
        return None

    if threads == 1 or len(out) == 1:
        return list(map(fill, range(len(out))))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(fill, range(len(out))))


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
