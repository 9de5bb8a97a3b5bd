"""lightning-vfs cache: what the cache folder holds, what uses it, and its removal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightning_vfs.commands.plain_parser import PlainParser
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.files import local_path
from lightning_vfs.data.cache_folder import (
    FEATURES,
    FOLDER,
    SIZE,
    Entry,
    day,
    default_cache_dir,
    entries,
    in_use,
    make_space,
    parse_size,
    readable,
    remove,
    size_limit,
)
from lightning_vfs.data.tensor_file import verify

ALL = "all"


def _parser() -> PlainParser:
    parser = PlainParser(prog="lightning-vfs cache", description=_DESCRIPTION)
    parser.add_argument("--dir", metavar="FOLDER", help=f"the cache folder; by default {FOLDER}, or ~/.cache/...")
    parser.add_argument(
        "--clear",
        nargs="+",
        metavar="NAME",
        help="remove what has this name, or was made of this folder; features, or all",
    )
    parser.add_argument("--limit", metavar="SIZE", help="remove the least recently used until the rest takes this much")
    parser.add_argument("--check", action="store_true", help="read every file and compare it with its checksum")
    return parser


_DESCRIPTION = f"""List decoded images, features of real images and the like, which are kept so that they are computed
once. What no running job uses is removed, the least recently used first, when all of it takes more than {SIZE}
(by default 200 GiB, or half of the disk)."""


def run(args: list[str]) -> int:
    """List, check or clear the cache; returns the exit status: 1 if something is damaged, or could not be removed.

    Raises:
        ConfigError: a size that is none, or a name that no entry has.
    """
    options = _parser().parse_args(args)
    folder = default_cache_dir() if options.dir is None else local_path(options.dir, "--dir")
    if options.dir is not None and not folder.is_dir():
        raise ConfigError(f"--dir {folder}: there is no such folder.")
    if options.clear:
        return _clear(folder, options.clear)
    if options.limit is not None:
        make_space(folder, 0, print, parse_size(options.limit, "--limit"))
    if options.check:
        return _check(folder)
    _show(folder)
    return 0


def _show(folder: Path) -> None:
    found = [entry for entry in entries(folder) if entry.content is not None]
    small = [entry for entry in found if entry.name.startswith(f"{FEATURES}/")]
    rows = []
    for entry in found:
        if entry not in small:
            what, source = entry.about()
            rows.append((entry.name, what, source, readable(entry.size), day(entry.last_used), _use(entry)))
    if small:
        kinds = [sum(entry.content.suffix == suffix for entry in small) for suffix in (".safetensors", ".json")]  # type: ignore[union-attr]
        what = f"features of real images: {kinds[0]:,} files; figures of them: {kinds[1]:,}"
        size, last = sum(entry.size for entry in small), max(entry.last_used for entry in small)
        rows.append((FEATURES, what, "", readable(size), day(last), ""))
    _print_table(("name", "what", "of", "size", "last use", ""), rows)
    total = sum(entry.size for entry in found)
    print(f"{folder}: {readable(total)} of at most {readable(size_limit(folder))}")


def _use(entry: Entry) -> str:
    return "in use" if in_use(entry) else ""


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        for row in [head, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _clear(folder: Path, names: Sequence[str]) -> int:
    found = entries(folder)
    chosen: list[Entry] = []
    for name in names:
        mine = [entry for entry in found if name == ALL or _is_called(entry, name)]
        if not mine and name not in (ALL, FEATURES):
            raise ConfigError(
                f"--clear {name}: {folder} has nothing of that name or made of such a folder; `lightning-vfs cache` "
                "lists what there is."
            )
        chosen += [entry for entry in mine if entry not in chosen]
    kept, freed = [], 0
    for entry in chosen:
        if remove(entry):
            freed += entry.size
        else:
            kept.append(entry)
    print(f"Removed {len(chosen) - len(kept):,} of {len(found):,} entries of {folder}, {readable(freed)}.")
    for entry in kept:
        print(f"Kept: {entry.name}, which a running job uses, or which is somebody else's.")
    return 1 if kept else 0


def _is_called(entry: Entry, name: str) -> bool:
    if name == FEATURES:
        return entry.name.startswith(f"{FEATURES}/")
    if name in (entry.name, entry.name.removeprefix(f"{FEATURES}/")):
        return True
    return entry.about()[1] == os.path.abspath(os.path.expanduser(name))


def _check(folder: Path) -> int:
    """Compare files with their checksums; features and figures are checked whenever they are read."""
    damaged, good = 0, 0
    for entry in entries(folder):
        content = entry.content
        if content is None or content.suffix != ".safetensors" or entry.name.startswith(f"{FEATURES}/"):
            continue
        try:
            verify(content)
            good += 1
        except (OSError, ValueError) as error:
            damaged += 1
            print(f"{content} is damaged ({error}): it is made again when it is needed.")
    print(f"{folder}: {good:,} of {good + damaged:,} files are as they were written.")
    return 1 if damaged else 0
