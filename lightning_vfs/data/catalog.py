"""All data sets of this package by name, imported: the command line's parser finds the subclasses that are loaded."""

from __future__ import annotations

from lightning_vfs.data.celeba import CelebASets
from lightning_vfs.data.cifar100 import CIFAR100Sets
from lightning_vfs.data.cub import CUBSets
from lightning_vfs.data.flowers102 import Flowers102Sets
from lightning_vfs.data.folders import FolderSets
from lightning_vfs.data.glyphs import GlyphSets
from lightning_vfs.data.mini_imagenet import MiniImageNetSets
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.data.omniglot import OmniglotSets
from lightning_vfs.data.tables import TableSets

_ALL: tuple[type[SetDataModule], ...] = (
    CelebASets,
    CIFAR100Sets,
    CUBSets,
    Flowers102Sets,
    FolderSets,
    GlyphSets,
    MiniImageNetSets,
    OmniglotSets,
    TableSets,
)
DATA_SETS = {kind.__name__: kind for kind in _ALL}
