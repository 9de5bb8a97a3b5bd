"""Lightning callbacks: figures and pictures of generated images, averaged weights, speed, checkpoints at the end."""

from lightning_vfs.callbacks.fid import FIDCallback
from lightning_vfs.callbacks.grids import SampleGridCallback
from lightning_vfs.callbacks.predictions import PredictionWriter
from lightning_vfs.callbacks.preemption import PreemptionCheckpoint
from lightning_vfs.callbacks.progress import RunProgressBar
from lightning_vfs.callbacks.summary import RunSummary
from lightning_vfs.callbacks.throughput import ThroughputCallback
from lightning_vfs.data.pictures import sample_grid
from lightning_vfs.training.averaging import EMACallback

__all__ = [
    "EMACallback",
    "FIDCallback",
    "PredictionWriter",
    "PreemptionCheckpoint",
    "RunProgressBar",
    "RunSummary",
    "SampleGridCallback",
    "ThroughputCallback",
    "sample_grid",
]
