"""Show a folder of images as training sees it: classes, splits, what is passed over, and what a set looks like."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import begin_files, check_is_folder, local_path
from lightning_vfs.data import FolderSets
from lightning_vfs.data.module import SPLITS
from lightning_vfs.data.pictures import sample_grid, save_png

NAMES_SHOWN = 8
LISTING = "data.json"


def show(data: FolderSets, out: Path, num_classes: int = 8) -> None:
    """Print what the data is, and draw rows of a support and its held-out image, for each split.

    Args:
        data: the folder.
        out: folder of the pictures, `train.png` and so on, which is made if necessary.
        num_classes: rows of a picture.

    Raises:
        ConfigError: `num_classes` is below 1, or the folder holds pictures of those names that this did not draw.
        DataError: what is wrong with the data.
    """
    if num_classes < 1:
        raise ConfigError(f"--num_classes is {num_classes}; it must be at least 1.")
    check_is_folder(out)
    print(data.describe())
    splits = [split for split in SPLITS if data.has_split(split)]
    begin_files(out, LISTING, [f"{split}.png" for split in splits])
    for split in splits:
        images = data.split(split)
        names = ", ".join(images.class_names[:NAMES_SHOWN])
        more = images.num_classes - NAMES_SHOWN
        print(f"{split}: {names}{f' and {more:,} more' if more > 0 else ''}; {_sizes(images.counts)} images a class")
        episodes = images.episodes(len(images), data.set_size - 1, 0)
        rows = episodes.first_of_classes(num_classes)
        picture = sample_grid(images.float(episodes.supports[rows]), images.float(episodes.targets[rows])[:, None])
        save_png(picture, out / f"{split}.png")
        print(f"{split}: {out / f'{split}.png'} has {len(rows)} classes, each with a support and the held-out image")


def _sizes(counts: np.ndarray) -> str:
    least, most = int(counts.min()), int(counts.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def run(args: list[str]) -> None:
    """Parse the arguments and show the data."""
    parser = ExplainingParser(prog="lightning-vfs data", description=__doc__)
    parser.add_argument("--out", type=str, default="data_preview", help="Folder of the pictures.")
    parser.add_argument("--num_classes", type=int, default=8, help="Rows of a picture.")
    parser.add_class_arguments(FolderSets, None, help="The data, as --data.root and so on give it to `fit`.")
    options = vars(parser.parse_args(args))
    out, num_classes = local_path(options.pop("out"), "--out"), options.pop("num_classes")
    defaults = vars(parser.get_defaults())
    show(FolderSets(**options), out, num_classes)
    given = {name: value for name, value in options.items() if value != defaults[name]}
    flags = " ".join(f"--data.{name} {shlex.quote(_plain(value))}" for name, value in given.items())
    print(f"Train on it with: lightning-vfs fit --config folders {flags}")


def _plain(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)
