"""Make a folder of emoji, one class for each, drawn by several designers, from npm packages of their vector drawings.

    pip install 'lightning_vfs[emoji]'
    python scripts/emoji.py --download --packages emoji/packages --out emoji
    lightning-vfs fit --config configs/data/emoji.yaml --data.root emoji/images

`--packages` is a folder of the packages @iconify-json/..., as `npm pack` or `--download` writes them (.tgz), or of what
they unpack to (folders with icons.json and info.json). Drawings of one name are one class; without flags and skin tones
the packages of PACKAGES have 1,184 classes of 6 to 9 drawings, 9,235 in all. Written are:

    OUT/images/CLASS/DESIGNER.png         or, with --hold_out_category, OUT/images/train/... and OUT/images/test/...
    OUT/held_out/DESIGNER/CLASS.png       with --hold_out_designer, which OUT/images then lacks
    OUT/ATTRIBUTION.md                    whose drawings these are, by which licence
    OUT/emoji.json                        the packages and options that they were made of
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.request import urlopen

from lightning_vfs.core.errors import ConfigError, DataError, VFSError
from lightning_vfs.core.files import file_sha256, replacing
from lightning_vfs.core.progress import progress
from lightning_vfs.data.archives import Archive, Folder, Tree

REGISTRY = "https://registry.npmjs.org"
PACKAGES = {
    "noto-1.2.9": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "noto-v1-1.2.5": "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    "fxemoji-1.2.2": "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    "fluent-emoji-1.2.7": "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    "fluent-emoji-flat-1.2.6": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "twemoji-1.2.5": "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "emojione-1.2.3": "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    "openmoji-1.2.29": "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    "emojione-v1-1.2.3": "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
}
"""Packages of @iconify-json with their versions, and the SHA-256 of their .tgz."""

PERMISSIVE = {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC"}
"""Licences, by SPDX, that ask for no more than their notice."""

LEFT_OUT = ("skin-tone", "flag")
"""Parts of names: a skin tone repeats a drawing, and flags look alike by every designer."""


@dataclass(frozen=True)
class Designer:
    """A package: its name, what info.json says, drawings by name, category of each name, and its file."""

    name: str
    info: dict[str, Any]
    drawings: dict[str, str]
    categories: dict[str, str]
    source: Path

    @property
    def licence(self) -> str:
        return str(self.info["license"].get("spdx") or self.info["license"]["title"])


def download(folder: Path, registry: str) -> None:
    """Download those of PACKAGES that are not in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, sha256 in PACKAGES.items():
        path = folder / f"iconify-json-{package}.tgz"
        if path.exists():
            continue
        url = f"{registry.rstrip('/')}/@iconify-json/{package.rsplit('-', 1)[0]}/-/{package}.tgz"
        print(f"Downloading {url} ...")
        try:
            with replacing(path) as temporary, urlopen(url) as response:
                temporary.write_bytes(response.read())
                if (found := file_sha256(temporary)) != sha256:
                    raise DataError(f"{url} has the SHA-256 {found}, but {package} has {sha256}.")
        except OSError as error:
            raise DataError(f"{url} cannot be downloaded ({error}): put the packages into {folder} by hand.") from error


def read_designers(folder: Path) -> list[Designer]:
    """All packages in a folder, by their names."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: give one with packages of @iconify-json, or --download.")
    places = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    trees: list[Tree] = [Archive(path) for path in places if path.name.endswith((".tgz", ".tar.gz"))]
    trees += [Folder(path) for path in places if path.is_dir()]
    designers = [read_designer(tree) for tree in trees if _file(tree, "icons.json")]
    if not designers:
        raise DataError(f"There is no package with an icons.json in {folder}: give --download, or use `npm pack`.")
    if twice := [name for name, count in Counter(designer.name for designer in designers).items() if count > 1]:
        raise DataError(f"{folder} holds {', '.join(twice)} more than once: keep one version of each package.")
    return sorted(designers, key=lambda designer: designer.name)


def read_designer(tree: Tree) -> Designer:
    """The drawings of a package, without those of LEFT_OUT, as SVG."""
    icons, info = _json(tree, "icons.json"), _json(tree, "info.json")
    try:
        kept = {name: icon for name, icon in icons["icons"].items() if not any(part in name for part in LEFT_OUT)}
        drawings = {name: svg({**icons, **icon}) for name, icon in kept.items() if re.fullmatch(r"[\w-]+", name)}
        categories = _json(tree, "metadata.json").get("categories", {}) if _file(tree, "metadata.json") else {}
        of_name = {name: _tidy(category) for category, names in categories.items() for name in names}
        return Designer(str(icons["prefix"]), info, drawings, of_name, tree.path)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{tree.path} is not a package of icons ({error!r}).") from error


def svg(icon: dict[str, Any]) -> str:
    """A drawing as an SVG file; its size and place are its own, or those of the package."""
    box = " ".join(str(float(icon.get(name, default))) for name, default in
                   (("left", 0), ("top", 0), ("width", 16), ("height", 16)))  # fmt: skip
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}">{icon["body"]}</svg>'


def _tidy(category: str) -> str:
    """A category by one name: packages say `Food & Drink`, `Food Drink` and `Food`."""
    return category.replace("&", " ").split()[0].lower()


def _file(tree: Tree, name: str) -> str | None:
    """Where a package has a file, at its top or in a folder `package`."""
    return next((each for each in tree.names if each in (name, f"package/{name}")), None)


def _json(tree: Tree, name: str) -> Any:
    place = _file(tree, name)
    if place is None:
        raise DataError(f"{tree.path} holds no {name}: it is not a package of @iconify-json.")
    try:
        return json.loads(tree.read(place))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{tree.path}: {PurePosixPath(place).name} is not JSON ({error}).") from error


def choose_classes(designers: Sequence[Designer], least: int) -> dict[str, list[Designer]]:
    """Who drew each class; classes that fewer than `least` drew are left out."""
    drawn: dict[str, list[Designer]] = defaultdict(list)
    for designer in designers:
        for name in designer.drawings:
            drawn[name].append(designer)
    chosen = {name: by for name, by in sorted(drawn.items()) if len(by) >= least}
    if not chosen:
        raise ConfigError(f"None of {len(drawn):,} names was drawn by {least} designers: lower --min_designers.")
    return chosen


def category_of(name: str, designers: Iterable[Designer]) -> str:
    """The category that most packages file a name under."""
    votes = Counter(designer.categories[name] for designer in designers if name in designer.categories)
    return min(votes, key=lambda category: (-votes[category], category)) if votes else "none"


def plan(
    designers: Sequence[Designer], least: int, category: str | None, held_out: str | None
) -> list[tuple[str, Designer, str]]:
    """Where each drawing goes: relative path, designer, name."""
    shown = [designer for designer in designers if designer.name != held_out]
    chosen = choose_classes(shown, least)
    of_class = {name: category_of(name, designers) for name in chosen}
    if category is not None and _tidy(category) not in of_class.values():
        counts = Counter(of_class.values())
        raise ConfigError(
            f"There is no category {category!r}: there are {', '.join(f'{n} ({counts[n]})' for n in counts)}."
        )
    places = []
    for name, by in chosen.items():
        split = "" if category is None else "test/" if of_class[name] == _tidy(category) else "train/"
        places += [(f"images/{split}{name}/{designer.name}.png", designer, name) for designer in by]
    for designer in designers:
        if designer.name == held_out:
            places += [
                (f"held_out/{held_out}/{name}.png", designer, name) for name in chosen if name in designer.drawings
            ]
    return places


def render(places: Sequence[tuple[str, Designer, str]], out: Path, size: int) -> None:
    """Draw all as PNG files of size x size pixels, on white."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ConfigError("resvg-py draws emoji: pip install 'lightning_vfs[emoji]'.") from error

    def draw(place: tuple[str, Designer, str]) -> None:
        path, designer, name = place
        try:
            png = svg_to_bytes(
                svg_string=designer.drawings[name], width=size, height=size, background="white", skip_system_fonts=True
            )
        except ValueError as error:
            raise DataError(f"{designer.source}: {name} cannot be drawn ({error}).") from error
        file = out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, sync=False) as temporary:
            temporary.write_bytes(png)

    bar = progress("Drawing", len(places), "emoji", unit="emoji")
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(draw, places):
                bar.update(1)
    finally:
        bar.close()


def attribution(designers: Iterable[Designer], size: int) -> str:
    """Whose drawings they are, as their licences ask."""
    lines = [
        "# Emoji",
        "",
        f"Drawn as PNG, {size} x {size} pixels, on white, from the npm packages @iconify-json/...:",
        "",
    ]
    for designer in designers:
        author, licence = designer.info["author"], designer.info["license"]
        lines.append(
            f"- {designer.name}.png: {designer.info['name']} by {author['name']} ({author.get('url', 'no address')}), "
            f"{licence['title']} ({licence.get('url', 'no address')})"
        )
    if any("SA" in designer.licence.split("-") for designer in designers):
        lines += ["", "What is made of drawings under a share-alike licence (SA) is shared under the same licence."]
    return "\n".join(lines) + "\n"


def make(options: argparse.Namespace) -> None:
    """Read, choose, draw and attribute."""
    if options.download:
        download(options.packages, options.registry)
    designers = read_designers(options.packages)
    if options.permissive:
        designers = [designer for designer in designers if designer.licence in PERMISSIVE]
    if options.hold_out_designer not in (None, *(designer.name for designer in designers)):
        raise ConfigError(
            f"There is no designer {options.hold_out_designer}: there are {', '.join(d.name for d in designers)}."
        )
    images = options.out / "images"
    if images.exists() and any(images.iterdir()):
        raise ConfigError(f"{images} is not empty: choose another --out, so that nothing of two runs is mixed.")
    places = plan(designers, options.min_designers, options.hold_out_category, options.hold_out_designer)
    render(places, options.out, options.image_size)
    (options.out / "ATTRIBUTION.md").write_text(attribution(designers, options.image_size))
    made = {
        "packages": {d.name: file_sha256(d.source) if d.source.is_file() else str(d.source.name) for d in designers},
        "options": {
            name: getattr(options, name)
            for name in ("image_size", "min_designers", "permissive", "hold_out_category", "hold_out_designer")
        },
    }
    (options.out / "emoji.json").write_text(json.dumps(made, indent=1) + "\n")
    classes = {str(PurePosixPath(path).parent) for path, *_ in places if path.startswith("images/")}
    print(f"{len(places):,} emoji of {len(classes):,} classes by {len(designers)} designers: {images}")
    print(f"Train on them with: lightning-vfs fit --config data/emoji --data.root {images}")


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--image_size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--min_designers", type=int, default=6, help="least drawings of a class")
    parser.add_argument("--permissive", action="store_true", help=f"only {', '.join(sorted(PERMISSIVE))}")
    parser.add_argument("--hold_out_category", help="category that is the test split, such as food")
    parser.add_argument("--hold_out_designer", help="designer whose drawings are kept apart, such as openmoji")
    parser.add_argument("--download", action="store_true", help="download what is missing of the packages")
    parser.add_argument("--registry", default=REGISTRY, help="npm registry to download from")
    options = parser.parse_args(args)
    if options.image_size < 1 or options.min_designers < 1:
        parser.error("--image_size and --min_designers must be at least 1")
    try:
        make(options)
    except VFSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
