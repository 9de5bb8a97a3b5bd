"""Files of the JAX system: Orbax folders, flat safetensors and Flax msgpack, read without jax.

Whatever the format, a file becomes one flat mapping from paths, joined by `/`, to arrays, numbers and strings:
`params/dit/params/Dense_0/kernel`, `ema_params/...`, `opt_state/0/mu/...`, `step`, `cfg/hdim`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lightning_vfs.core.errors import CheckpointError
from lightning_vfs.core.files import read_json
from lightning_vfs.core.trust import reading

Flat = dict[str, Any]

MOST_ENTRIES = 2**16
"""Entries of one list or mapping of a msgpack file."""

MOST_COMPRESSION = 100
"""Bytes of an Orbax folder's arrays for one of its files. Weights cannot be compressed, moments of zeros can."""

ORBAX_TREE = "_METADATA"
ORBAX_STRINGS = "_strings.json"


def read_flat(path: Path) -> Flat:
    """Everything that a file or folder of the JAX system holds.

    Raises:
        CheckpointError: there is no such file, it is damaged, or of no known format.
    """
    if not path.is_dir() and not path.is_file():
        raise CheckpointError(
            f"There is no file or folder {path}; from_jax reads an Orbax checkpoint folder, a flat safetensors file or "
            "a Flax msgpack file."
        )
    with reading(path):
        flat = _read_orbax(path) if path.is_dir() else _read_file(path)
        for name, value in flat.items():
            if isinstance(value, np.ndarray) and value.dtype.kind not in "biufV":
                raise ValueError(f"{name} is an array of {value.dtype}, not of numbers")
    return flat


def _read_file(path: Path) -> Flat:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_msgpack(path)


@contextmanager
def _of_the_extra() -> Iterator[None]:
    """What is imported inside belongs to the extra `jax-import`; raises CheckpointError where it is not installed."""
    try:
        yield
    except ImportError as error:
        raise CheckpointError(
            "Orbax folders and msgpack files are read with tensorstore, msgpack and ml_dtypes: pip install "
            f"'lightning_vfs[jax-import]' ({error}). Flat safetensors files need none of them."
        ) from error


# -- safetensors ---------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> Flat:
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            flat: Flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    try:
        cfg = json.loads(metadata.get("config", "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a `config` in its metadata that is not JSON: {error}") from error
    return flat | {f"cfg/{name}": value for name, value in cfg.items()}


# -- Flax msgpack --------------------------------------------------------------------------------------------------


def _read_msgpack(path: Path) -> Flat:
    """Format of flax.serialization: extension 1 is an array, 3 a NumPy scalar, each as (shape, dtype, bytes)."""
    with _of_the_extra():
        import msgpack

    def extension(code: int, data: bytes) -> Any:
        if code not in (1, 3):
            raise ValueError(f"extension type {code} holds no array")
        shape, dtype, content = msgpack.unpackb(data, raw=False)
        return np.frombuffer(content, dtype=_dtype(dtype)).reshape(shape)

    try:
        tree = msgpack.unpackb(
            path.read_bytes(),
            ext_hook=extension,
            raw=False,
            strict_map_key=False,
            max_array_len=MOST_ENTRIES,  # memory for all entries is taken before they are read
            max_map_len=MOST_ENTRIES,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise CheckpointError(
            f"{path} is damaged or not a Flax msgpack file ({error}); a flat safetensors file ends with .safetensors, "
            "and an Orbax checkpoint is a folder."
        ) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is not a Flax msgpack file of parameters: it holds a {type(tree).__name__}.")
    return dict(_flattened(tree))


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        with _of_the_extra():
            import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value.get("__msgpack_chunked_array__"):
            # Arrays above 1 GB come in pieces, and tuples as {'0': ..., '1': ...}.
            pieces, shape = (_in_order(value[part]) for part in ("chunks", "shape"))
            yield f"{prefix}{name}", np.concatenate(pieces).reshape(shape)
        elif isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _in_order(numbered: Mapping[str, Any]) -> list[Any]:
    return [numbered[str(i)] for i in range(len(numbered))]


# -- Orbax ---------------------------------------------------------------------------------------------------------


def _read_orbax(folder: Path) -> Flat:
    """Leaves by tensorstore; the tree and the strings are JSON files in the same folder."""
    if not (folder / ORBAX_TREE).is_file() and (folder / "default" / ORBAX_TREE).is_file():
        folder = folder / "default"  # as Orbax's CheckpointManager lays it out
    if not (folder / ORBAX_TREE).is_file():
        inside = sorted(p.name for p in folder.iterdir() if (p / ORBAX_TREE).is_file())
        hint = f"; it has the checkpoints {', '.join(inside)} in it: name one" if inside else ""
        raise CheckpointError(f"{folder} is not an Orbax checkpoint: there is no {ORBAX_TREE} in it{hint}.")
    try:
        metadata = read_json(folder / ORBAX_TREE)
        strings = folder / ORBAX_STRINGS
        flat: Flat = read_json(strings) if strings.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    flat = {name.replace(".", "/"): value for name, value in flat.items()}
    arrays = {
        "/".join(str(key["key"]) for key in leaf["key_metadata"])
        for leaf in metadata["tree_metadata"].values()
        if leaf["value_metadata"]["value_type"] not in ("string", "None", "Dict", "List")
    }
    return flat | _read_arrays(folder, sorted(arrays), metadata.get("use_zarr3", False))


def _read_arrays(folder: Path, names: list[str], zarr3: bool) -> dict[str, np.ndarray]:
    with _of_the_extra():
        import tensorstore

    for name in names:
        if not name.strip("./"):
            raise ValueError(f"{ORBAX_TREE} lists an array {name!r}, which is a folder outside of the checkpoint")
    base = f"file://{folder.resolve()}/"
    in_one_store = (folder / "manifest.ocdbt").is_file()

    def location(name: str) -> dict[str, Any] | str:
        path = name.replace("/", ".")
        return {"driver": "ocdbt", "base": base, "path": path} if in_one_store else base + path

    driver = "zarr3" if zarr3 else "zarr"
    opened = {name: tensorstore.open({"driver": driver, "kvstore": location(name)}, read=True) for name in names}
    try:
        stores = {name: future.result() for name, future in opened.items()}
        _check_declared_bytes(folder, sum(store.size * store.dtype.numpy_dtype.itemsize for store in stores.values()))
        contents = {name: store.read() for name, store in stores.items()}
        return {name: np.asarray(future.result()) for name, future in contents.items()}
    except ValueError as error:
        raise CheckpointError(
            f"{folder} is damaged: an array that {ORBAX_TREE} lists cannot be read. {str(error).splitlines()[0]}"
        ) from error


def _check_declared_bytes(folder: Path, declared: int) -> None:
    """Refuse arrays that would take much more memory than the folder has bytes: what is not stored reads as zeros."""
    stored = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
    if declared > MOST_COMPRESSION * stored + 2**26:
        raise ValueError(f"its arrays declare {declared:,} bytes, and its files have {stored:,}")
