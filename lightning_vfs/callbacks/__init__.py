"""Lightning callbacks: figures and pictures of what the model generates, speed, and checkpoints of runs that end."""

from lightning_vfs.callbacks.fid import FIDCallback
from lightning_vfs.callbacks.grids import SampleGridCallback, sample_grid
from lightning_vfs.callbacks.predictions import PredictionWriter
from lightning_vfs.callbacks.preemption import PreemptionCheckpoint
from lightning_vfs.callbacks.progress import RunProgressBar
from lightning_vfs.callbacks.summary import RunSummary
from lightning_vfs.callbacks.throughput import ThroughputCallback

__all__ = [
    "FIDCallback",
    "PredictionWriter",
    "PreemptionCheckpoint",
    "RunProgressBar",
    "RunSummary",
    "SampleGridCallback",
    "ThroughputCallback",
    "sample_grid",
]
