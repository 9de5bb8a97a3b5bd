"""Values of images, such as latents, in a file of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from lightning_vfs.data.cache_folder import Lease


class MappedRows:
    """Rows of a tensor of a safetensors file, memory-mapped; other processes map it again instead of copying it.

    Args:
        path: the file.
        name: of the tensor (N, ...).
    """

    def __init__(self, path: Path, name: str) -> None:
        self.__setstate__({"path": path, "name": name})

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.name = state["path"], state["name"]
        self._lease = Lease(self.path)
        with safe_open(self.path, framework="pt") as file:
            self._rows: torch.Tensor = file.get_tensor(self.name)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> torch.Tensor:
        """Rows: int64 of any shape (...,) to (..., *row)."""
        rows = self._rows[torch.from_numpy(np.asarray(indices, dtype=np.int64).reshape(-1))]
        return rows.reshape(*indices.shape, *rows.shape[1:])
