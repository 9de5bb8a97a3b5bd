"""Damaged and hostile files of every kind that this package reads, and what reading them leads to.

`python -m tests.hostile 10000` draws so many cases and prints a table; the tests draw a few hundred.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from lightning_vfs.commands.evaluate import data_of_run
from lightning_vfs.core.errors import VFSError
from lightning_vfs.data import CUBSets, FolderSets, OmniglotSets
from lightning_vfs.data.cache import DamagedCacheWarning, cached_images
from lightning_vfs.data.images import ClassImages
from lightning_vfs.data.official import OfficialSets
from lightning_vfs.data.pickles import read_pickle
from lightning_vfs.evaluation.record import EvaluationRecord
from lightning_vfs.interop import from_jax
from lightning_vfs.interop.lightning_state import read_lightning
from lightning_vfs.metrics import ImageFeatures, glyph_cnn
from lightning_vfs.metrics.feature_cache import load_features, store_features
from lightning_vfs.modules import VFSDDPM

from .conftest import tiny_config
from .data.official import omniglot, png, write_tar, write_zip
from .evaluation.test_record import plain
from .interop.conftest import CASES, trainer_tree
from .metrics.test_feature_cache import SOURCE

MOST_BYTES, MOST_SECONDS, MOST_TEXT = 2**29, 20.0, 20_000
"""Memory that a case may take beyond what the process had, time, and characters of the message."""


COSTLY = {"images", "images, skipped", "zip of images", "tgz of images", "decoded-image cache"}
COSTLY |= {"checkpoint (.ckpt)", "JAX Orbax", "run's config.yaml"}
"""Kinds of which fewer are drawn, since a case takes 0.1 s or more."""


class Kind(NamedTuple):
    """A kind of file: `write` makes a folder of it, `read` reads that, and `damaged` chooses the files to change."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    damaged: str = "*"
    copied: bool = True
    """Whether a copy of the folder is as good: a cache of decoded images knows the files that it was made from."""


# -- each kind --------------------------------------------------------------------------------------------------------


def _write_images(folder: Path) -> None:
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    for label in "abc":
        for i, suffix in enumerate(("png", "jpg", "tif", "webp", "gif", "bmp") if label == "a" else ("png", "png")):
            path = folder / "set" / label / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(pixels, ord(label) + i)).save(path)
    Image.fromarray(pixels.astype(np.uint16)[..., 0] * 200).save(folder / "set/a/wide.png")


def _read_images(folder: Path, on_unreadable: str) -> None:
    options: dict[str, Any] = {"set_size": 2, "image_size": 8, "split_fractions": (1, 0, 0)}
    FolderSets(str(folder / "set"), 1, on_unreadable, cache_dir=str(folder / "cache"), **options).setup()  # type: ignore[arg-type]


def _pickled_images() -> bytes:
    pixels = np.arange(12 * 8 * 8 * 3, dtype=np.uint8).reshape(12, 8, 8, 3)
    return pickle.dumps({"image_data": pixels, "class_dict": {"n01": list(range(6)), "n02": list(range(6, 12))}})


def _read_official(kind: type[OfficialSets], folder: Path) -> None:
    options: dict[str, Any] = {"set_size": 2, "image_size": 8, "split_fractions": (1, 0, 0)}
    kind(str(folder / "set"), cache_dir=str(folder / "cache"), **options).setup()


def _write_omniglot(folder: Path) -> None:
    for name in ("background", "evaluation"):
        write_zip(folder / "set" / f"images_{name}.zip", omniglot(name, {f"A{name}": 3}))


def _write_cub(folder: Path) -> None:
    members = {f"images/{i:03d}.Bird/{j}.png": png(i) for i in range(1, 5) for j in range(3)}
    write_tar(folder / "set" / "CUB_200_2011.tgz", members)


def _write_checkpoint(folder: Path) -> None:
    model = VFSDDPM(tiny_config())
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint = {
        "state_dict": model.state_dict(), "current_model_state": model.state_dict(), "global_step": 3, "epoch": 0,
        "averaging_state": {"n_averaged": torch.tensor(3)}, "hyper_parameters": dict(model.hparams),
        "optimizer_states": [optimizer.state_dict()], "pytorch-lightning_version": "2.6.0", "loops": {},
        "callbacks": {"EMACallback": {"decay": 0.9}}, "lr_schedulers": [],
    }  # fmt: skip
    torch.save(checkpoint, folder / "last.ckpt")


def _read_checkpoint(folder: Path) -> None:
    VFSDDPM.load_from_checkpoint(folder / "last.ckpt", raw=True)
    read_lightning(folder / "last.ckpt")


def _write_orbax(folder: Path) -> None:
    import orbax.checkpoint as ocp

    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(folder / "orbax", trainer_tree("head_film"), force=True)


def _write_msgpack(folder: Path) -> None:
    import msgpack

    def packed(value: Any) -> Any:
        array = np.asarray(value)
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))

    tree = trainer_tree("head_film")
    tree["opt_state"] = {"0": tree["opt_state"][0]}
    (folder / "model.msgpack").write_bytes(msgpack.packb(tree, default=packed))


def _read_features(folder: Path) -> None:
    load_features(SOURCE, folder)


def _read_glyph_cache(folder: Path) -> None:
    def build() -> ClassImages:
        return ClassImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), ["a", "b"], [0, 0, 1, 1])

    images = cached_images(folder, "glyphs", "key", build)
    images.select([0]).float([0])


def _write_decoded_cache(folder: Path) -> None:
    _write_images(folder)
    _read_images(folder, "error")


def _read_decoded_cache(folder: Path) -> None:
    options: dict[str, Any] = {"set_size": 2, "image_size": 8, "split_fractions": (1, 0, 0)}
    data = FolderSets(str(folder / "set"), 1, cache_dir=str(folder / "cache"), **options)
    data.setup()
    data.split("train").float([0, 1])


def _write_config(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(
        "# lightning.pytorch==2.6.6\nseed_everything: 0\ndata:\n  class_path: lightning_vfs.data.FolderSets\n"
        "  init_args:\n    root: images\n    image_size: 32\n    split_fractions:\n    - 0.8\n    - 0.1\n    - 0.1\n"
    )


KINDS = {
    "images": Kind(_write_images, lambda folder: _read_images(folder, "error"), "set/a/*"),
    "images, skipped": Kind(_write_images, lambda folder: _read_images(folder, "skip"), "set/a/*"),
    "zip of images": Kind(_write_omniglot, lambda folder: _read_official(OmniglotSets, folder), "set/*"),
    "tgz of images": Kind(_write_cub, lambda folder: _read_official(CUBSets, folder), "set/*"),
    "pickled images": Kind(
        lambda folder: (folder / "images.pkl").write_bytes(_pickled_images()),
        lambda folder: read_pickle(BytesIO((folder / "images.pkl").read_bytes()), folder / "images.pkl"),
    ),
    "checkpoint (.ckpt)": Kind(_write_checkpoint, _read_checkpoint),
    "pretrained folder": Kind(
        lambda folder: VFSDDPM(tiny_config()).save_pretrained(folder), VFSDDPM.from_pretrained
    ),
    "record (fid.json)": Kind(
        lambda folder: (folder / "fid.json").write_text(json.dumps(plain(), indent=1)),
        lambda folder: EvaluationRecord.read(folder / "fid.json"),
    ),
    "run's config.yaml": Kind(
        _write_config, lambda folder: data_of_run(str(folder / "checkpoints/last.ckpt"), []), "config.yaml"
    ),
    "JAX safetensors": Kind(
        lambda folder: shutil.copy(CASES / "head_film.safetensors", folder / "case.safetensors"),
        lambda folder: from_jax(folder / "case.safetensors"),
    ),
    "JAX msgpack": Kind(_write_msgpack, lambda folder: from_jax(folder / "model.msgpack", ema=True)),
    "JAX Orbax": Kind(_write_orbax, lambda folder: from_jax(folder / "orbax"), "orbax/**/*"),
    "extractor's weights": Kind(
        lambda folder: shutil.copy(
            Path(glyph_cnn.__file__).with_name("glyph_cnn.safetensors"), folder / "weights.safetensors"
        ),
        lambda folder: ImageFeatures("glyph-cnn", weights_path=folder / "weights.safetensors"),
    ),
    "feature cache": Kind(
        lambda folder: store_features(
            SOURCE, {layer: torch.ones(10, dim) for layer, dim in SOURCE.dims.items()}, folder
        ),
        _read_features,
        "features/*",
    ),
    "decoded-image cache": Kind(_write_decoded_cache, _read_decoded_cache, "cache/*.safetensors", False),
    "glyph cache": Kind(_read_glyph_cache, _read_glyph_cache, "glyphs-*.safetensors"),
}  # fmt: skip


# -- damage -----------------------------------------------------------------------------------------------------------

TOKENS = [
    b"0", b"-1", b"1", b"7", b"999999999", b"99999999999999999999", b"1e400", b"NaN", b"null", b"true", b'"x"', b"[]",
    b"{}", b"[" * 200_000, b'"' + b"x" * 70_000 + b'"', b'"os.system"', b"1.5", b"[1, [2]]",
]  # fmt: skip


def _cut(draw: Callable[..., Any], content: bytes) -> bytes:
    return content[: draw(st.integers(0, len(content)))]


def _flip(draw: Callable[..., Any], content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 16))):
        changed[draw(st.integers(0, min(len(content) - 1, draw(st.sampled_from([64, 2048, 2**40])))))] ^= 1 << draw(
            st.integers(0, 7)
        )
    return bytes(changed)


def _overwrite(draw: Callable[..., Any], content: bytes) -> bytes:
    start = draw(st.integers(0, len(content)))
    new = draw(st.one_of(st.binary(max_size=64), st.sampled_from([b"\0" * 64, b"\xff" * 64, content[:200]])))
    return content[:start] + new + content[start + draw(st.sampled_from([0, len(new), 8 * len(new)])) :]


def _rewrite_token(draw: Callable[..., Any], content: bytes) -> bytes:
    """Another value for a number, word or string of a text, such as JSON, or of a file's header."""
    length = int.from_bytes(content[:8], "little")
    has_header = 8 < length < len(content) and content[8:9] == b"{"  # of a safetensors file
    head = content[: 8 + length if has_header else 2**16]
    tokens = list(re.finditer(rb'"[^"]{0,60}"|-?\d+(?:\.\d+)?|\b(?:true|false|null)\b', head))
    if not tokens:
        return _flip(draw, content)
    token = draw(st.sampled_from(tokens))
    new = content[: token.start()] + draw(st.sampled_from(TOKENS)) + content[token.end() :]
    if has_header:
        new = (length + len(new) - len(content)).to_bytes(8, "little") + new[8:]
    return new


def _inside_zip(draw: Callable[..., Any], path: Path) -> None:
    """Change an entry of an archive, whose checksums fit again: the pickle of a checkpoint, most often."""
    with zipfile.ZipFile(path) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    names = [name for name in contents if name.endswith("data.pkl")] * 5 + list(contents)
    name = draw(st.sampled_from(names))
    if contents[name]:
        contents[name] = draw(st.sampled_from([_cut, _flip, _overwrite]))(draw, contents[name])
    compression = draw(st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry, content in contents.items():
            archive.writestr(entry, content)


def damage(draw: Callable[..., Any], folder: Path, pattern: str) -> str:
    """Change a file of the folder; says what was done."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and path.suffix not in (".lock", ".txt"))
    path = draw(st.sampled_from(files))
    content = path.read_bytes()
    if zipfile.is_zipfile(path) and draw(st.booleans()):
        _inside_zip(draw, path)
        return f"inside the zip file {path.name}"
    change = draw(st.sampled_from([_cut, _flip, _overwrite, _rewrite_token] if content else [_overwrite]))
    path.write_bytes(change(draw, content))
    return f"{change.__name__} {path.name}"


# -- cases ------------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What reading led to: `read`, `repaired`, or the name of an error of this package; and what it cost."""

    what: str
    seconds: float
    grown: int


@contextmanager
def _pristine(kind: Kind) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        kind.write(source)
        yield source


def outcome(kind: Kind, folder: Path) -> Outcome:
    """Read a folder; whatever is not an error of this package, or costs too much, is raised."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            kind.read(folder)
            what = "repaired" if any(issubclass(w.category, DamagedCacheWarning) for w in said) else "read"
        except VFSError as error:
            what, length = type(error).__name__, len(str(error))
            if length > MOST_TEXT:
                raise ValueError(f"a message of {length:,} characters") from error
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    result = Outcome(what, time.monotonic() - start, grown)
    assert grown < MOST_BYTES and result.seconds < MOST_SECONDS, result
    return result


def cases(name: str, count: int, failures: list[str] | None = None) -> list[Outcome]:
    """Outcomes of so many cases of a kind; the first failure is raised, or all are collected."""
    kind, outcomes = KINDS[name], list[Outcome]()

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def draw_all(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "copy")
            if kind.copied:
                shutil.copytree(source, folder)
            else:
                folder.mkdir()
                kind.write(folder)
            done = damage(data.draw, folder, kind.damaged)
            try:
                outcomes.append(outcome(kind, folder))
            except Exception as error:
                if failures is None:
                    raise AssertionError(f"{name}, {done}: {type(error).__name__}: {error}") from error
                failures.append(f"{name}, {done}: {type(error).__name__}: {str(error)[:300]}")
                outcomes.append(Outcome("failed", 0, 0))

    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with _pristine(kind) as source:
            outcome(kind, source)
            draw_all()
    finally:
        log.setLevel(level)
    return outcomes


def main(count: int, names: list[str]) -> None:
    """Print what so many cases led to, as a table in Markdown, and every failure."""
    failures: list[str] = []
    print("| kind of file | cases | read | repaired | errors by name | slowest | most memory taken |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cheap = len(KINDS.keys() - COSTLY)
    for name in names or list(KINDS):
        share = count // 25 if name in COSTLY else (count - len(COSTLY) * (count // 25)) // cheap + 1
        found = cases(name, share, failures)
        counts = Counter(each.what for each in found)
        errors = ", ".join(f"{what} {n:,}" for what, n in counts.most_common() if what not in ("read", "repaired"))
        seconds, grown = max(each.seconds for each in found), max(each.grown for each in found)
        print(
            f"| {name} | {len(found):,} | {counts['read']:,} | {counts['repaired']:,} | {errors} | {seconds:.1f} s | "
            f"{grown / 2**20:.0f} MiB |",
            flush=True,
        )
    print(*Counter(failures).most_common(), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
