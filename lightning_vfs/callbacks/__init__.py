"""Lightning callbacks: figures and pictures of what the model generates."""

from lightning_vfs.callbacks.fid import FIDCallback
from lightning_vfs.callbacks.grids import SampleGridCallback, sample_grid

__all__ = ["FIDCallback", "SampleGridCallback", "sample_grid"]
