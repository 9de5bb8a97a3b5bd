"""SetDataModule, the base class of all data sets."""

from __future__ import annotations

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_vfs.core.checks import check_whole_number
from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.core.files import local_path
from lightning_vfs.core.seeding import global_seed
from lightning_vfs.data.augmentation import Augmentation
from lightning_vfs.data.cache_folder import default_cache_dir, size_limit
from lightning_vfs.data.images import ClassImages, to_float
from lightning_vfs.data.mapped import MappedRows
from lightning_vfs.data.sets import SetDescription, SetLoader, SetSampler

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class SmallClassWarning(UserWarning):
    """Classes with fewer images than a set are left out."""


class SetDataModule(LightningDataModule, ABC):
    """Sets of images of one class, from class-disjoint train, val and test splits.

    A subclass loads its images in `load`. Training draws different sets in every epoch, validation and test always the
    same; they depend on the seed and the epoch, not on the number of workers or ranks. Batches are `SetBatch`: images
    (b, n, c, h, w), label (b,), index (b,). Images travel as uint8, a quarter of the bytes, and become floats in
    [-1, 1] on the device, before a module of the trainer sees them.

    Args:
        set_size: images per set (n), at least 2; classes with fewer images are left out.
        image_size: height and width of an image in pixels.
        channels: channels of an image, 1 (grey) or 3 (RGB).
        batch_size: sets per batch on one rank.
        sets_per_epoch: sets of a training epoch over all ranks; the last ones that fill no batch are not used.
        eval_sets: sets of validation, of test and of prediction (which is on the test split), over all ranks.
        num_workers: processes that fetch batches on every rank; 0 fetches in the training process.
        split_seed: decides which classes are train, val and test.
        split_fractions: share of the classes in train, val and test, together 1; 0 for no val or no test.
        seed: decides which sets are drawn; None takes the seed of the run (`seed_everything`).
        cache_dir: folder for decoded images; None takes the environment variable LIGHTNING_VFS_CACHE, or
            ~/.cache/lightning_vfs.
        turned_classes: add classes turned by 90, 180 and 270 degrees, as classes of their own (`name/rot090`): `train`
            to the training classes, `all` to those of every split. A turned class is in the split of its original.
        augmentation: transforms of torchvision.transforms.v2 for the images of training batches, one after the other,
            each as `{class_path: ..., init_args: {...}}`. They take and return uint8 (c, h, w). Evaluation uses none.

    Attributes:
        may_change: options that do not decide which sets are drawn: a run may go on with others.

    Raises:
        ConfigError: a value is not allowed.
    """

    may_change: ClassVar[frozenset[str]] = frozenset({"batch_size", "eval_sets", "num_workers", "cache_dir"})

    def __init__(
        self,
        set_size: int = 6,
        image_size: int = 32,
        channels: int = 3,
        batch_size: int = 16,
        sets_per_epoch: int = 1024,
        eval_sets: int = 128,
        num_workers: int = 0,
        split_seed: int = 0,
        split_fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int | None = None,
        cache_dir: str | None = None,
        turned_classes: Literal["none", "train", "all"] = "none",
        augmentation: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.set_size = set_size
        self.image_size = image_size
        self.channels = channels
        self.batch_size = batch_size
        self.sets_per_epoch = sets_per_epoch
        self.eval_sets = eval_sets
        self.num_workers = num_workers
        self.split_seed = split_seed
        self.split_fractions = split_fractions
        self.seed = seed
        self.cache_dir = default_cache_dir() if cache_dir is None else local_path(cache_dir, "cache_dir")
        size_limit(self.cache_dir)  # refuses one that is not a size
        self.turned_classes = turned_classes
        self.augmentation = augmentation
        self._check_arguments()
        self._augment = Augmentation.of(augmentation, channels, image_size)
        self._splits: dict[Split, ClassImages] = {}
        self._latents: dict[Split, MappedRows] = {}

    @abstractmethod
    def load(self) -> ClassImages | Mapping[Split, ClassImages]:
        """All images, (c, h, w) by `channels` and `image_size`; from the cache if they are in it.

        Returns:
            All classes, to be split by `split_seed`; or the splits that the data itself defines, `train` at least.
            Those that it leaves out are taken from the classes of `train`, by `split_seed`.

        Raises:
            DataError: there is nothing to load, or it cannot be read.
        """

    def prepare_data(self) -> None:
        """Decode the images into the cache; Lightning calls it in one process of every machine."""
        self.load()

    def setup(self, stage: str | None = None) -> None:
        """Load and split the images, once.

        Warns:
            SmallClassWarning: classes with fewer images than a set are left out.

        Raises:
            DataError: a split is left without a class, or a class is in two splits; and what `load` raises.
        """
        if not self._splits:
            loaded = self.load()
            given: Mapping[Split, ClassImages] = {"train": loaded} if isinstance(loaded, ClassImages) else loaded
            splits = self._without_small_classes(self._complete(given))
            turned = {"none": (), "train": ("train",), "all": SPLITS}[self.turned_classes]
            self._splits = {name: images.with_turned() if name in turned else images for name, images in splits.items()}

    def split(self, name: Split) -> ClassImages:
        """Images of one split; works without a trainer too.

        Raises:
            ConfigError: there is no split of this name.
            DataError: the split has no classes; and what `setup` raises.
        """
        if name not in SPLITS:
            raise ConfigError(f"There is no split {name!r}; allowed: {', '.join(SPLITS)}.")
        self.setup()
        if name not in self._splits:
            raise DataError(
                f"There is no {name} split: its share in split_fractions {tuple(self.split_fractions)} is 0. "
                "Give it a share above 0."
            )
        return self._splits[name]

    def has_split(self, name: Split) -> bool:
        """Whether there is a split of this name."""
        self.setup()
        return name in self._splits

    def train_dataloader(self) -> SetLoader:
        """This rank's batches of training sets, different ones in every epoch."""
        return self._loader("train")

    def val_dataloader(self) -> SetLoader | list[SetLoader]:
        """This rank's batches of validation sets, the same in every epoch; none without a val split."""
        self.setup()
        return self._loader("val") if "val" in self._splits else []

    def test_dataloader(self) -> SetLoader:
        """This rank's batches of test sets, always the same."""
        return self._loader("test")

    def predict_dataloader(self) -> SetLoader:
        """The test sets."""
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale uint8 images to [-1, 1] on the device, in the trainer's precision; other batches stay as they are."""
        if isinstance(batch, dict) and getattr(batch.get("images"), "dtype", None) == torch.uint8:
            images = to_float(batch["images"])
            if self.trainer is not None:
                images = self.trainer.precision_plugin.convert_input(images)
            return {**batch, "images": images}
        return batch

    def describe(self) -> str:
        """Classes and images of every split, and what a set is, in a line; then a line for each remark."""
        self.setup()
        sizes = [f"{name} {s.num_classes:,} classes, {len(s):,} images" for name, s in self._splits.items()]
        sets = f"sets of {self.set_size} x {self.channels} x {self.image_size} x {self.image_size}"
        return "\n".join(["; ".join([*sizes, sets]), *self.remarks()])

    def remarks(self) -> list[str]:
        """Lines on what was passed over when the images were loaded, for `describe`."""
        return []

    def identity(self) -> dict[str, Any]:
        """What decides the sets that are drawn, as plain values; by it runs on other data are told apart.

        These are the class, its options other than `may_change` (those that it keeps under their own names), and what
        `contents` says.
        """
        options = {name for kind in type(self).__mro__ for name in _parameters(kind)} - self.may_change
        kept = {name: getattr(self, name) for name in sorted(options) if hasattr(self, name)}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **kept, **self.contents()}

    def contents(self) -> dict[str, Any]:
        """What the data consists of, for `identity`, as plain values; found without reading the images."""
        return {}

    def describe_sets(self, index: Sequence[int]) -> list[SetDescription]:
        """Which class and images the training sets with these global indices are made of."""
        sampler, images = self._sampler("train"), self.split("train")
        plans = [sampler.set_at(i) for i in index]
        return [
            SetDescription(images.class_names[plan["label"][0]], tuple(map(images.name_of, plan["members"][0])))
            for plan in plans
        ]

    def _loader(self, name: Split) -> SetLoader:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return SetLoader(
            self._sampler(name),
            self.num_workers,
            pin_memory=on_cuda,
            augment=self._augment if self.is_augmented(name) else None,
            latents=self._latents.get(name),
        )

    def is_augmented(self, name: Split) -> bool:
        """Whether the images of a split's batches are changed."""
        return name == "train" and self._augment is not None

    def use_latents(self, name: Split, latents: MappedRows) -> None:
        """Deliver latents with the images of a split's batches, from now on.

        Args:
            name: a split that no augmentation changes.
            latents: of all its images, in their order.

        Raises:
            ConfigError: the split's images are changed, or are not as many.
        """
        if self.is_augmented(name) or len(latents) != len(self.split(name)):
            raise ConfigError(
                f"Latents of {len(latents)} images are not those of the split {name}, which has "
                f"{len(self.split(name))}{', changed by augmentation' if self.is_augmented(name) else ''}."
            )
        self._latents[name] = latents

    def _sampler(self, name: Split) -> SetSampler:
        trainer, training = self.trainer, name == "train"
        return SetSampler(
            self.split(name),
            set_size=self.set_size,
            num_sets=self.sets_per_epoch if training else self.eval_sets,
            batch_size=self.batch_size,
            seed=global_seed() if self.seed is None else self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            resample=training,
            same_sets=bool(getattr(trainer, "overfit_batches", 0)),
            drop_last=training,
        )

    def _complete(self, given: Mapping[Split, ClassImages]) -> dict[Split, ClassImages]:
        """Take the splits that are not given from the classes of train."""
        _refuse_shared_classes(given)
        shares = dict(zip(SPLITS, self.split_fractions, strict=True))
        wanted = {name: shares[name] for name in SPLITS if name == "train" or (name not in given and shares[name] > 0)}
        classes = _split_classes(given["train"], wanted, self.split_seed)
        return {
            name: given["train"].select(classes[name]) if name in classes else given[name]
            for name in SPLITS
            if name in classes or name in given
        }

    def _without_small_classes(self, splits: Mapping[Split, ClassImages]) -> dict[Split, ClassImages]:
        """Leave out classes that cannot fill a set; after splitting, so that splits do not depend on the set size."""
        kept: dict[Split, ClassImages] = {}
        small: list[str] = []
        for name, images in splits.items():
            enough = images.counts >= self.set_size
            too_small = [f"{images.class_names[i]} ({images.counts[i]})" for i in np.flatnonzero(~enough)]
            if not enough.any():
                raise DataError(
                    f"The {name} split is left without a class: none of its {images.num_classes} classes has the "
                    f"{self.set_size} images of a set: {_few(too_small)}. Ways out: a smaller --data.set_size (the "
                    f"largest of these classes has {images.counts.max()} images), other --data.split_fractions or "
                    "another --data.split_seed, or more images."
                )
            kept[name] = images.select(np.flatnonzero(enough))
            small += too_small
        if small:
            rank_zero_warn(
                f"{len(small)} of {sum(images.num_classes for images in splits.values())} classes have fewer than the "
                f"{self.set_size} images of a set and are left out (images): {_few(small)}.",
                category=SmallClassWarning,
            )
        return kept

    def _check_arguments(self) -> None:
        least = {"set_size": 2, "image_size": 1, "batch_size": 1, "sets_per_epoch": 1, "eval_sets": 1}
        least |= {"num_workers": 0, "split_seed": 0} | ({} if self.seed is None else {"seed": 0})
        for name, minimum in least.items():
            check_whole_number(name, getattr(self, name), minimum)
        if self.channels not in (1, 3):
            raise ConfigError(f"channels is {self.channels!r}; allowed: 1 (grey) or 3 (RGB).")
        if self.turned_classes not in ("none", "train", "all"):
            raise ConfigError(f"turned_classes is {self.turned_classes!r}; allowed: 'none', 'train', 'all'.")
        shares = self.split_fractions
        if len(shares) != 3 or min(shares) < 0 or shares[0] <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ConfigError(
                f"split_fractions is {tuple(shares)}; it must be three numbers for train (above 0), val and test "
                "(0 or above) that sum to 1, such as 0.8, 0.1, 0.1."
            )


def _parameters(kind: type) -> list[str]:
    """Names of the arguments that a class's own constructor takes."""
    own = vars(kind).get("__init__")
    return [] if own is None or kind is object else list(inspect.signature(own).parameters)


def _refuse_shared_classes(splits: Mapping[Split, ClassImages]) -> None:
    owner: dict[str, Split] = {}
    for split, images in splits.items():
        for name in images.class_names:
            if owner.setdefault(name, split) != split:
                raise DataError(
                    f"The class {name} is in two splits, {owner[name]} and {split}, but evaluation is on classes never "
                    "trained on. Keep it in one of them, or rename one if they are different classes."
                )


def _split_classes(images: ClassImages, shares: Mapping[Split, float], seed: int) -> dict[Split, np.ndarray]:
    """Divide classes by shares, at least one class each: indices in ascending order.

    Classes are ranked by a hash of seed and name, so that a class keeps its split when others are added or removed
    (except some at the borders), on every machine and version of NumPy. Classes with fewer than two images, which
    cannot fill a set of any size, do not count, and stay in train.
    """
    usable = np.flatnonzero(images.counts >= 2).tolist()

    def rank(i: int) -> bytes:
        name = images.class_names[i].encode(errors="backslashreplace")
        return hashlib.sha256(f"{seed}/".encode() + name).digest()

    ranked = sorted(usable, key=rank)
    total = sum(shares.values())
    divided: dict[Split, np.ndarray] = {}
    first = 0
    for name in shares:
        if name != "train":
            end = first + max(1, round(len(ranked) * shares[name] / total))
            divided[name] = np.sort(ranked[first:end])
            first = end
    if first >= len(ranked):
        raise DataError(
            f"{len(ranked)} classes of two or more images are too few for {' and '.join(shares)}, which need at least "
            "one each. Add classes, or set val or test to 0 in --data.split_fractions."
        )
    divided["train"] = np.setdiff1d(np.arange(images.num_classes), np.concatenate([[], *divided.values()]))
    return divided


def _few(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
