"""Data modules that deliver sets of images of one class.

Names are imported when they are first used: workers that are not forked need neither Lightning nor the fonts.
"""

from typing import TYPE_CHECKING

from lightning_vfs.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_vfs.data.celeba import CelebASets
    from lightning_vfs.data.cifar100 import CIFAR100Sets
    from lightning_vfs.data.cub import CUBSets
    from lightning_vfs.data.flowers102 import Flowers102Sets
    from lightning_vfs.data.folders import FolderSets, load_support
    from lightning_vfs.data.glyphs import GlyphSets
    from lightning_vfs.data.images import ClassImages, Episodes
    from lightning_vfs.data.mini_imagenet import MiniImageNetSets
    from lightning_vfs.data.module import SetDataModule
    from lightning_vfs.data.omniglot import OmniglotSets
    from lightning_vfs.data.pictures import sample_grid, save_png, to_image
    from lightning_vfs.data.sets import SetBatch
    from lightning_vfs.data.tables import TableSets

_HOMES = {
    "CIFAR100Sets": "cifar100",
    "CUBSets": "cub",
    "CelebASets": "celeba",
    "Flowers102Sets": "flowers102",
    "MiniImageNetSets": "mini_imagenet",
    "OmniglotSets": "omniglot",
    "ClassImages": "images",
    "Episodes": "images",
    "FolderSets": "folders",
    "GlyphSets": "glyphs",
    "SetBatch": "sets",
    "TableSets": "tables",
    "SetDataModule": "module",
    "load_support": "folders",
    "sample_grid": "pictures",
    "save_png": "pictures",
    "to_image": "pictures",
}

__all__ = [
    "CIFAR100Sets",
    "CUBSets",
    "CelebASets",
    "ClassImages",
    "Episodes",
    "Flowers102Sets",
    "FolderSets",
    "GlyphSets",
    "MiniImageNetSets",
    "OmniglotSets",
    "SetBatch",
    "SetDataModule",
    "TableSets",
    "load_support",
    "sample_grid",
    "save_png",
    "to_image",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
