"""Pickles of plain values and arrays, read without running what they say.

A pickle is a program. Here it can make dictionaries, lists, strings, numbers and NumPy arrays of numbers; anything else
that it names is refused. NumPy's own classes are not called either: their state is kept, and checked when the arrays
are made.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from lightning_vfs.core.errors import DataError

MOST_VALUES = 5_000_000
"""Values of a pickle that others refer to; Python makes room for as many as the largest number says."""

_NUMPY = ("numpy.core", "numpy._core")


class _Type:
    """A dtype: its code, such as `u1`, and its byte order."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def made(self) -> np.dtype[Any]:
        code = self.code.lstrip("<>=|")
        if code[:1] not in ("b", "i", "u", "f") or not code[1:].isdigit():
            raise ValueError(f"it holds an array of {self.code!r}, not of numbers")
        return np.dtype(code).newbyteorder("=" if self.order == "|" else self.order)  # type: ignore[arg-type]


class _Array:
    """An array that is being read; `made` is it."""

    def __init__(self) -> None:
        self.made = np.zeros(0, dtype=np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.made = _from_bytes(content, kind, shape, "F" if fortran else "C")


def _from_bytes(content: Any, kind: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(kind, _Type):
        raise ValueError("it holds an array without a type")
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise ValueError(f"it holds an array in a {type(content).__name__}")
    dtype, shape = kind.made(), tuple(int(side) for side in shape)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"it holds an array of shape {shape} and type {dtype} in {len(content)} bytes")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any = "C") -> _Array:
    array = _Array()
    array.made = _from_bytes(content, kind, shape, order)
    return array


def _number(kind: Any, content: Any) -> Any:
    return _from_bytes(content, kind, ()).item()


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it encodes text as {encoding!r}")
    return str(text).encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _only_named(*_: Any) -> None:
    raise ValueError("it makes an array in an unusual way")


def _new_array(*_: Any) -> _Array:
    return _Array()


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _only_named,
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): dict,
    **{(f"{package}.multiarray", "_reconstruct"): _new_array for package in _NUMPY},
    **{(f"{package}.multiarray", "scalar"): _number for package in _NUMPY},
    **{(f"{package}.numeric", "_frombuffer"): _from_buffer for package in _NUMPY},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not plain data") from None


def read_pickle(file: BinaryIO, source: object) -> Any:
    """Plain values and arrays of a pickle, also of Python 2; strings of bytes become text by Latin-1.

    Args:
        file: opened for reading, at its beginning.
        source: what the message calls it.

    Raises:
        DataError: it is damaged, or holds anything but plain values and arrays of numbers.
    """
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > MOST_VALUES:
                raise ValueError(f"it numbers a value {argument:,}, and {MOST_VALUES:,} is the most")
        file.seek(0)
        value = _Unpickler(file, encoding="latin1").load()
        return _plain(value, {})
    except Exception as error:  # unpickling raises nearly anything on damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{source} cannot be read as a pickle of arrays and plain values ({reason}). Use the published file."
        ) from error


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """The value, with arrays in the place of what stands for them; `known` has those of containers met before."""
    if isinstance(value, _Array):
        return value.made
    if isinstance(value, _Type):
        raise ValueError("it holds a type in the place of a value")
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in known:  # a list of the same list twice, and so on, would grow without end
        if isinstance(value, dict):
            known[id(value)] = {_plain(key, known): _plain(each, known) for key, each in value.items()}
        else:
            known[id(value)] = type(value)(_plain(each, known) for each in value)
    return known[id(value)]
