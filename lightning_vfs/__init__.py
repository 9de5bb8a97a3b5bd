"""Few-shot image generation with diffusion models in PyTorch Lightning.

Names are imported when they are first used, so that `import lightning_vfs` and `lightning-vfs --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    from lightning_vfs.data import SetDataModule
    from lightning_vfs.modules import VFSDDPM

_HOMES = {
    "VFSConfig": "core",
    "CheckpointError": "core",
    "SetSizeMismatchError": "core",
    "VFSDDPM": "modules",
    "SetDataModule": "data",
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
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lightning_vfs.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
