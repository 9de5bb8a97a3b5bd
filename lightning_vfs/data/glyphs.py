"""The built-in data set: characters of the fonts that matplotlib ships."""

from __future__ import annotations

import contextlib
import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features

from lightning_vfs.core.errors import DataError
from lightning_vfs.core.files import file_sha256
from lightning_vfs.data.cache import cached_images, content_key
from lightning_vfs.data.decode import PILLOW
from lightning_vfs.data.images import ClassImages
from lightning_vfs.data.module import SetDataModule

# Left out: cm* and STIXNonUni*, STIXSiz*, whose character maps put other signs at a code point; the *Display faces and
# LastResort, which have a few characters, or a placeholder for each.
FACES = tuple(
    [f"DejaVu{family}{style}" for family in ("Sans", "SansMono") for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")]
    + [f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")]
)
MIN_FACES = 12
SOURCE = "the fonts of matplotlib"
_RENDERING = 1  # raise it when the code below draws other pixels
_SUPERSAMPLING = 4
_EM, _BASELINE = 0.8, 0.78  # of the image's height; accents over capitals and descenders just fit


class GlyphSets(SetDataModule):
    """Sets of one character in several typefaces; needs no download.

    Classes are the letters, numbers and symbols that at least 12 of 16 faces (DejaVu Sans, Sans Mono, Serif and STIX,
    each upright and slanted, regular and bold) have, named `U+0041 A`. Dark ink (-1) on white paper (1);
    centred across, and every character of a face at the same size and on the same baseline, so
    that c and C differ; those that do not fit are moved and, if necessary, made smaller.

    Characters that look the same, as the Latin A, the Greek and the Cyrillic one do, would be seen in training and
    count as never seen in evaluation. Of characters with identical outlines in at least a quarter of the faces, and
    of those spelled with the same letter and accents by Unicode's NFD, only the one of the smallest code point is
    kept: 2,046 characters, 27,556 images.

    Args:
        set_size: images per set (n), at least 2.
        image_size: height and width of an image in pixels.
        channels: 1, or 3 for the same grey in all of them.
        **kwargs: as for `SetDataModule`.

    Raises:
        ConfigError: a value is not allowed.
    """

    def __init__(self, set_size: int = 6, image_size: int = 16, channels: int = 1, **kwargs: Any) -> None:
        super().__init__(set_size=set_size, image_size=image_size, channels=channels, **kwargs)

    def load(self) -> ClassImages:
        """All characters; rendered on first use (some seconds), then from the cache.

        Raises:
            DataError: matplotlib's fonts are missing, or the cache cannot be written.
        """
        paths = _font_files()
        fonts = {face: file_sha256(path) for face, path in paths.items()}
        versions = [_RENDERING, PILLOW, features.version("freetype2"), unicodedata.unidata_version]
        key = content_key({"fonts": fonts, "size": self.image_size, "min_faces": MIN_FACES, "versions": versions})
        images = cached_images(self.cache_dir, "glyphs", key, lambda: _render_all(paths, self.image_size), SOURCE)
        if self.channels == 1:
            return images
        return ClassImages(
            images.images.expand(-1, 3, -1, -1), images.class_names, images.labels, mapped=images.mapped, key=images.key
        )


def _font_files() -> dict[str, Path]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = {face: folder / f"{face}.ttf" for face in FACES}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(FACES)} font files that GlyphSets draws are not in {folder}: "
            f"{', '.join(missing)}. They come with matplotlib from PyPI: pip install --force-reinstall matplotlib."
        )
    return paths


def _render_all(paths: Mapping[str, Path], image_size: int) -> ClassImages:
    outlines = _outlines(paths)
    characters = _distinct_characters(outlines)
    em = round(_EM * _SUPERSAMPLING * image_size)
    fonts = {
        face: ImageFont.truetype(str(path), em, layout_engine=ImageFont.Layout.BASIC) for face, path in paths.items()
    }
    drawn = [
        (label, _render(fonts[face], character, image_size))
        for label, character in enumerate(characters)
        for face in paths
        if character in outlines[face]
    ]
    labels, images = zip(*drawn, strict=True)
    names = [f"U+{ord(character):04X} {character}" for character in characters]
    return ClassImages(torch.from_numpy(np.stack(images))[:, None], names, labels)


def _outlines(paths: Mapping[str, Path]) -> dict[str, dict[str, bytes]]:
    """Outline of every letter, number and symbol that enough faces have and that leaves ink, for every face.

    Outlines are equal when one is the other moved along the line.
    """
    from fontTools.ttLib import TTFont

    with contextlib.ExitStack() as files:
        return _outlines_of({face: files.enter_context(TTFont(path, lazy=True)) for face, path in paths.items()})


def _outlines_of(fonts: Mapping[str, Any]) -> dict[str, dict[str, bytes]]:
    in_faces = Counter(
        character
        for font in fonts.values()
        for character in map(chr, font.getBestCmap())
        if unicodedata.category(character)[0] in "LNS"
    )
    outlines: dict[str, dict[str, bytes]] = {face: {} for face in fonts}
    for face, font in fonts.items():
        shapes = font["glyf"]
        for code, name in font.getBestCmap().items():
            if in_faces[chr(code)] >= MIN_FACES:
                points, ends, flags = shapes[name].getCoordinates(shapes)
                if len(points):
                    place = np.array(points.array).reshape(-1, 2)
                    place[:, 0] -= place[:, 0].min()
                    outlines[face][chr(code)] = place.tobytes() + np.asarray(ends).tobytes() + bytes(flags)
    return outlines


def _distinct_characters(outlines: Mapping[str, Mapping[str, bytes]]) -> list[str]:
    """Characters in enough faces, one of each group that looks the same, in the order of code points."""
    faces = outlines.values()
    in_faces = Counter(itertools.chain.from_iterable(faces))
    characters = sorted(c for c in in_faces if in_faces[c] >= MIN_FACES)
    same: Counter[tuple[str, str]] = Counter()
    for face in faces:
        groups = defaultdict(list)
        for character in characters:
            if character in face:
                groups[face[character]].append(character)
        for group in groups.values():
            same.update(itertools.combinations(group, 2))
    first = {c: c for c in characters}
    for a, b in same:
        if 4 * same[a, b] >= sum(a in face and b in face for face in faces):
            keep, drop = sorted((first[a], first[b]))
            first = {c: keep if f == drop else f for c, f in first.items()}
    # Spelled out by NFD, an accented letter of one script shows itself as that of another; fonts may place the accent
    # a little differently. This also finds what Unicode defines as equal, such as the Kelvin sign and K.
    spelled: dict[str, str] = {}
    for character in characters:
        spelling = "".join(first.get(part, part) for part in unicodedata.normalize("NFD", first[character]))
        spelled.setdefault(spelling, character)
    return list(spelled.values())


def _render(font: ImageFont.FreeTypeFont, character: str, image_size: int) -> np.ndarray:
    """One character, dark on white: uint8 (image_size, image_size)."""
    size = image_size * _SUPERSAMPLING
    left, top, right, bottom = map(round, font.getbbox(character, anchor="ls"))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), character, fill=255, font=font, anchor="ls")
    top += round(_BASELINE * size)
    if max(ink.size) > size:
        shrink = size / max(ink.size)
        smaller = (max(1, int(ink.width * shrink)), max(1, int(ink.height * shrink)))
        ink = ink.resize(smaller, Image.Resampling.BOX)
    page = Image.new("L", (size, size))
    page.paste(ink, ((size - ink.width) // 2, min(max(top, 0), size - ink.height)))
    return 255 - np.asarray(page.reduce(_SUPERSAMPLING))
