"""Show data as training sees it: classes, splits, what is passed over, and what a set looks like.

By default the data is a folder of images, --root. --data OmniglotSets is another data set, --config data/omniglot the
one of a configuration; their options follow likewise.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lightning_vfs.commands.configurations import packaged
from lightning_vfs.commands.plain_parser import PlainParser
from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core.checks import choose, is_path
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import begin_files, check_is_folder, local_path
from lightning_vfs.data import SetDataModule
from lightning_vfs.data.catalog import DATA_SETS
from lightning_vfs.data.module import SPLITS
from lightning_vfs.data.pictures import sample_grid, save_png

NAMES_SHOWN = 8
LISTING = "data.json"


def show(data: SetDataModule, out: Path, num_classes: int = 8) -> None:
    """Print what the data is, and draw rows of a support and its held-out image, for each split.

    Args:
        data: the data set.
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


def _chosen(config: str | None, name: str | None) -> tuple[type[SetDataModule], dict[str, Any]]:
    """The data set of a configuration, or that of this name, and the options that the configuration gives it.

    Raises:
        ConfigError: there is no such data set, or the configuration has none.
    """
    options: dict[str, Any] = {}
    if config is not None:
        try:
            found = yaml.safe_load(Path(config).read_text())["data"]
            class_path, options = found["class_path"], dict(found.get("init_args") or {})
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise ConfigError(f"{config} has no data set, as `data: {{class_path: ..., init_args: ...}}`.") from error
        if name is not None:
            raise ConfigError(f"--data is {name} and --config {config}, which has a data set too: give one of them.")
        name = str(class_path)
    name = (name or "FolderSets").removeprefix("lightning_vfs.data.")
    if not is_path(name) and name not in DATA_SETS:
        raise ConfigError(f"There is no data set {name}; there are {', '.join(DATA_SETS)}, or give an import path.")
    kind = choose(name, DATA_SETS)
    if not (isinstance(kind, type) and issubclass(kind, SetDataModule)):
        raise ConfigError(f"{name} is not a data set: it must be a subclass of SetDataModule.")
    return kind, options


def run(args: list[str]) -> None:
    """Parse the arguments and show the data.

    Raises:
        ConfigError: there is no such data set, or the configuration has none.
        DataError: what is wrong with the data.
    """
    args = [arg.replace("--data.", "--", 1) if arg.startswith("--data.") else arg for arg in args]
    first = PlainParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--data"):
        first.add_argument(name)
    chosen, _ = first.parse_known_args(args)
    kind, given = _chosen(chosen.config, chosen.data)
    parser = ExplainingParser(prog="lightning-vfs data", description=__doc__)
    parser.add_argument("--out", type=str, default="data_preview", help="Folder of the pictures.")
    parser.add_argument("--num_classes", type=int, default=8, help="Rows of a picture.")
    parser.add_argument(
        "--config", type=str | None, default=None, help="Configuration that has the data, by file or name."
    )
    parser.add_argument("--data", type=str | None, default=None, help=f"{', '.join(DATA_SETS)}, or an import path.")
    parser.add_class_arguments(kind, None, help="The data, as --data.root and so on give it to `fit`.")
    parser.set_defaults(given)
    options = vars(parser.parse_args(args))
    out, num_classes = local_path(options.pop("out"), "--out"), options.pop("num_classes")
    del options["config"], options["data"]
    defaults = vars(parser.get_defaults())
    show(kind(**options), out, num_classes)
    flags = [
        f"--data.{name} {shlex.quote(_plain(value))}" for name, value in options.items() if value != defaults[name]
    ]
    config = chosen.config and (packaged(chosen.config) or chosen.config)
    start = ["--config", shlex.quote(config)] if config else ["--data", chosen.data or "FolderSets"]
    print(f"Next: lightning-vfs fit {' '.join([*start, *flags])}")


def _plain(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)
