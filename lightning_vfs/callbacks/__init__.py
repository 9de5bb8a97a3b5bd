"""Lightning callbacks: figures and pictures of what the model generates."""

from lightning_vfs.callbacks.fid import FIDCallback
from lightning_vfs.callbacks.grids import SampleGridCallback, sample_grid
from lightning_vfs.callbacks.predictions import PredictionWriter

__all__ = ["FIDCallback", "PredictionWriter", "SampleGridCallback", "sample_grid"]
