"""Few-shot image generation with diffusion models in PyTorch Lightning.

Names are imported when they are first used, so that `import lightning_vfs` and `lightning-vfs --help` stay fast.
"""

from typing import TYPE_CHECKING

from lightning_vfs.lazy import lazy_names
from lightning_vfs.version import __version__

if TYPE_CHECKING:
    from lightning_vfs.callbacks import (
        EMACallback,
        FIDCallback,
        PreemptionCheckpoint,
        SampleGridCallback,
        ThroughputCallback,
    )
    from lightning_vfs.core import CheckpointError, SetSizeMismatchError, VFSConfig
    from lightning_vfs.data import SetDataModule, sample_grid, save_png, to_image
    from lightning_vfs.modules import VFSDDPM

_HOMES = {
    "VFSConfig": "core",
    "CheckpointError": "core",
    "SetSizeMismatchError": "core",
    "VFSDDPM": "modules",
    "SetDataModule": "data",
    "sample_grid": "data",
    "save_png": "data",
    "to_image": "data",
    "EMACallback": "callbacks",
    "FIDCallback": "callbacks",
    "PreemptionCheckpoint": "callbacks",
    "SampleGridCallback": "callbacks",
    "ThroughputCallback": "callbacks",
}

__all__ = [
    "VFSDDPM",
    "CheckpointError",
    "EMACallback",
    "FIDCallback",
    "PreemptionCheckpoint",
    "SampleGridCallback",
    "SetDataModule",
    "SetSizeMismatchError",
    "ThroughputCallback",
    "VFSConfig",
    "__version__",
    "sample_grid",
    "save_png",
    "to_image",
]


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
