"""Values kept by their sample's global index, so that a figure depends neither on ranks nor on batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vfs.training.ranks import on_first_rank

T = TypeVar("T")


class IndexedMetric(Metric):
    """A torchmetrics Metric whose states are rows with a global sample index.

    Rows may arrive in any order, in batches of any size, on any rank, twice, or not at all on some rank: `gathered`
    gives them once each, in the order of their index. They are kept on the metric's device, wherever they come from,
    because NCCL's collectives refuse any other.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self._empty: dict[str, Tensor] = {}

    def add_rows(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Declare a state of rows of this shape; `name` and `name_index` become attributes."""
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state(f"{name}_index", default=[], dist_reduce_fx="cat")
        self._empty[name] = torch.empty(0, *shape, dtype=dtype)
        self._empty[f"{name}_index"] = torch.empty(0, dtype=torch.int64)

    def append(self, name: str, index: Tensor, rows: Tensor) -> None:
        """Add rows (n, ...) of the global sample indices (n,)."""
        empty = self._empty[name]
        if rows.shape[1:] != empty.shape[1:] or len(rows) != len(index):
            expected = tuple(empty.shape[1:])
            raise ValueError(
                f"{name} takes rows of shape {expected} and an index for each; got {tuple(rows.shape)} "
                f"and {tuple(index.shape)}."
            )
        getattr(self, name).append(rows.detach().to(self.device, empty.dtype))
        getattr(self, f"{name}_index").append(index.detach().to(self.device, torch.int64))

    def gathered(self, name: str) -> tuple[Tensor, Tensor]:
        """Index (n,) and rows (n, ...) of one state, in index order without duplicates.

        This rank's, or, inside `compute` and `sync_context`, those of all ranks.
        """
        self._append_empty()
        index, rows = dim_zero_cat(getattr(self, f"{name}_index")), dim_zero_cat(getattr(self, name))
        index, order = index.sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        return index[first], rows[order][first]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks, those of ranks without a row too (torchmetrics' own sync aborts there)."""
        self._append_empty()
        super().sync(*args, **kwargs)

    def on_first_rank(self, figure: Callable[[], T]) -> T:
        """Value of `figure()`, computed on rank 0 only and sent to the others, as is an exception it raises.

        All ranks call it, inside `compute`.
        """
        return on_first_rank(figure) if self._is_synced else figure()

    def on_device(self, figures: Tensor) -> Tensor:
        """Figures on the metric's device, float64 or, on a device without it (MPS), float32."""
        try:
            return figures.to(self.device, torch.float64)
        except TypeError:
            return figures.to(self.device, torch.float32)

    def _append_empty(self) -> None:
        for name, empty in self._empty.items():
            state = getattr(self, name)
            if isinstance(state, list) and not state:
                state.append(empty.to(self.device))


class IndexedRows(IndexedMetric):
    """Rows of several names, gathered from all ranks in the order of their samples.

    Args:
        shapes: of a row, by name.
        dtype: of all rows.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.names = tuple(shapes)
        for name, shape in shapes.items():
            self.add_rows(f"rows_{name}", shape, dtype)

    def update(self, rows: Mapping[str, Tensor], index: Tensor) -> None:
        """Add rows (n, ...) by name, of the global sample indices (n,)."""
        for name, values in rows.items():
            self.append(f"rows_{name}", index, values)

    def compute(self) -> dict[str, Tensor]:
        """All rows (m, ...) by name. Collective."""
        return {name: self.gathered(f"rows_{name}")[1] for name in self.names}
