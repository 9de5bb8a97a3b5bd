"""Data modules that deliver sets of images of one class."""

from lightning_vfs.data.folders import FolderSets, load_support
from lightning_vfs.data.glyphs import GlyphSets
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.data.sets import SetBatch

__all__ = ["ClassImages", "Episodes", "FolderSets", "GlyphSets", "SetBatch", "SetDataModule", "load_support"]
