"""Files of torch.save from other people: no code of them runs, and they take no more memory than they have bytes."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import torch
from torch import Tensor


def load_torch_file(path: str | os.PathLike[str]) -> Any:
    """What a file of torch.save holds, on the CPU, its tensors memory-mapped; only plain values and tensors.

    Raises:
        Exception: of any kind, if the file is damaged or not a zip file, holds something else, or declares tensors that
            are larger than the file; the message says what is wrong, but not with which file.
    """
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
        raise ValueError("its contents are compressed, which torch.save does not do")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError(f"its {size:,} bytes declare contents of more")
    try:
        os.fsencode(path).decode()
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnicodeDecodeError:  # torch maps only files whose names are UTF-8
        with open(path, "rb") as file:
            values = torch.load(file, map_location="cpu", weights_only=True)
    _check_tensors(values, size)
    return values


def _check_tensors(values: Any, size: int) -> None:
    """Raise ValueError for a tensor that declares more than the file holds: it would take memory when it is copied."""
    waiting, met = [values], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu":
                raise ValueError(f"it holds a tensor of layout {value.layout} on {value.device}")
            stored = value.untyped_storage().nbytes()
            if value.numel() * value.element_size() > stored or stored > size:
                raise ValueError(f"a tensor of shape {tuple(value.shape)[:8]} is larger than what the file holds of it")
        elif isinstance(value, dict | list | tuple | set) and id(value) not in met:
            met.add(id(value))  # a file can make a list an item of itself
            waiting.extend(value)
            waiting.extend(value.values() if isinstance(value, dict) else ())
