"""Data modules that deliver sets of images of one class.

Names are imported when they are first used: workers that are not forked need neither Lightning nor the fonts.
"""

from typing import TYPE_CHECKING

from lightning_vfs.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_vfs.data.folders import FolderSets, load_support
    from lightning_vfs.data.glyphs import GlyphSets
    from lightning_vfs.data.images import ClassImages, Episodes
    from lightning_vfs.data.module import SetDataModule
    from lightning_vfs.data.pictures import sample_grid, save_png, to_image
    from lightning_vfs.data.sets import SetBatch

_HOMES = {
    "ClassImages": "images",
    "Episodes": "images",
    "FolderSets": "folders",
    "GlyphSets": "glyphs",
    "SetBatch": "sets",
    "SetDataModule": "module",
    "load_support": "folders",
    "sample_grid": "pictures",
    "save_png": "pictures",
    "to_image": "pictures",
}

__all__ = [
    "ClassImages",
    "Episodes",
    "FolderSets",
    "GlyphSets",
    "SetBatch",
    "SetDataModule",
    "load_support",
    "sample_grid",
    "save_png",
    "to_image",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
