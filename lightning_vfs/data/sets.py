"""Sets of images of one class: resampled every epoch, distributed over ranks, delivered in batches."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_vfs.core.errors import ConfigError, DataError
from lightning_vfs.data import decode
from lightning_vfs.data.augmentation import Augmentation
from lightning_vfs.data.draws import balanced_labels, sample_distinct
from lightning_vfs.data.images import ClassImages
from lightning_vfs.data.mapped import MappedRows


class SetBatch(TypedDict):
    """A batch of sets.

    images: uint8 (b, n, c, h, w), the images of a set distinct and of one class; a module of the trainer gets them as
        float32 in [-1, 1], scaled on its device (`SetDataModule.on_after_batch_transfer`).
    label: int64 (b,), class of every set, as an index into the split.
    latents: (b, n, c, h, w), latents of the images, where they are cached and no augmentation changes the images.
    index: int64 (b,), global index of every set: epoch * sets per epoch + position in the epoch.
    """

    images: torch.Tensor
    label: torch.Tensor
    index: torch.Tensor
    latents: NotRequired[torch.Tensor]


class SetDescription(NamedTuple):
    """A set in words: its class, and its images in their order."""

    class_name: str
    images: tuple[str, ...]


class SetPlan(TypedDict):
    """Which images make the sets of one batch: members (b, n), label (b,), index (b,), all int64."""

    members: np.ndarray
    label: np.ndarray
    index: np.ndarray


class SetSampler(Sampler[SetPlan]):
    """This rank's batches of an epoch's sets.

    The sets of an epoch depend on the images, `set_size`, `num_sets`, `seed` and the epoch; every class comes equally
    often, up to one. They are cut into global batches in order, and rank r takes the r-th contiguous slice of each:
    every rank has the same number of batches, and one process with a batch of b * world_size sees the same batches.

    Args:
        images: the split to draw from; every class has at least `set_size` images.
        set_size: images per set (n).
        num_sets: sets per epoch, over all ranks.
        batch_size: sets per batch on one rank.
        seed: not negative.
        rank: of this process, below `world_size`.
        world_size: number of processes.
        resample: draw different sets in every epoch; otherwise always those of epoch 0, with the same global indices.
        same_sets: of `resample`, deliver the sets of epoch 0 in every epoch, with other global indices, which other
            noise and timesteps follow.
        drop_last: leave out the last sets, which do not fill a global batch; otherwise the sets are spread evenly, and
            all are delivered exactly once.

    Attributes:
        start: sets of the epoch that were delivered before, perhaps in batches of another size: batches begin there.

    Raises:
        ConfigError: too few sets for one batch on every rank.
    """

    def __init__(
        self,
        images: ClassImages,
        set_size: int,
        num_sets: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        resample: bool = True,
        same_sets: bool = False,
        drop_last: bool = True,
    ) -> None:
        self.images = images
        self.set_size = set_size
        self.num_sets = num_sets
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.resample = resample
        self.same_sets = same_sets
        self.epoch = 0
        self.start = 0
        global_batch = batch_size * world_size
        needed = global_batch if drop_last else world_size
        if num_sets < needed:
            field = "sets_per_epoch" if drop_last else "eval_sets"
            raise ConfigError(
                f"{field} is {num_sets}, less than the {needed} that {world_size} rank(s) with batch_size {batch_size} "
                f"need. Set --data.{field} to {needed} or more, or use a smaller batch or fewer ranks."
            )
        self.global_batch = global_batch
        self._bounds: np.ndarray | None = None
        if not drop_last:
            # No more batches than let every rank have a set in each: with one set per batch the last ones may hold two.
            batches = min(-(-num_sets // global_batch), num_sets // world_size)
            self._bounds = np.arange(batches + 1) * num_sets // batches

    @property
    def sampler(self) -> SetSampler:
        """Itself: Lightning looks for `set_epoch` in `loader.batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to draw; Lightning calls this before every epoch, also after a resume."""
        if self.resample:
            self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return len(self.bounds()) - 1

    def bounds(self, start: int = 0) -> np.ndarray:
        """Number of the first set of every batch, and of the one after the last, if `start` sets are delivered."""
        if self._bounds is not None:
            return self._bounds[self._bounds >= start]
        return start + np.arange(max(0, self.num_sets - start) // self.global_batch + 1) * self.global_batch

    def __iter__(self) -> Iterator[SetPlan]:
        """Batches of the epoch, from set number `start` on."""
        drawn = self._draw(self.epoch)
        for first, end in itertools.pairwise(self.bounds(self.start).tolist()):
            mine = slice(
                first + (end - first) * self.rank // self.world_size,
                first + (end - first) * (self.rank + 1) // self.world_size,
            )
            yield _part(drawn, mine)

    def set_at(self, index: int) -> SetPlan:
        """The set with a global index, of whichever epoch and rank."""
        epoch, position = divmod(index, self.num_sets)
        return _part(self._draw(epoch), slice(position, position + 1))

    def _draw(self, epoch: int) -> SetPlan:
        """All sets of an epoch."""
        rng = np.random.default_rng((self.seed, 0 if self.same_sets else epoch))
        label = balanced_labels(self.images.num_classes, self.num_sets, rng)
        members = self.images.offsets[label, None] + sample_distinct(self.images.counts[label], self.set_size, rng)
        return {"members": members, "label": label, "index": epoch * self.num_sets + np.arange(self.num_sets)}


def _part(plan: SetPlan, rows: slice) -> SetPlan:
    return {"members": plan["members"][rows], "label": plan["label"][rows], "index": plan["index"][rows]}


class _PlannedSets(Dataset[SetBatch | DataError]):
    """Fetches a whole planned batch by one gather."""

    def __init__(
        self, images: ClassImages, augment: Augmentation | None, seed: int, latents: MappedRows | None
    ) -> None:
        self._images = images
        self._latents = latents
        self._augment = augment
        self._seed = seed

    def __getitem__(self, plan: SetPlan) -> SetBatch | DataError:
        try:
            images = self._images.uint8(plan["members"])
        except DataError as error:  # raised in the run itself, which would show the traceback of a worker
            return error
        if self._augment is not None:
            images = self._augment(images, plan["index"], self._seed)
        batch: SetBatch = {
            "images": images,
            "label": torch.from_numpy(plan["label"]),
            "index": torch.from_numpy(plan["index"]),
        }
        if self._latents is not None:
            batch["latents"] = self._latents[plan["members"]]
        return batch


def _obey_the_run_alone(worker: int) -> None:
    """SLURM, Ctrl-C and signals to a process group reach workers too, but a run that was signalled still needs them."""
    decode.threads = 1  # there are as many workers as the user wants
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # the system does not tell who sent a signal
        return
    parent = multiprocessing.parent_process()  # the run's, where os.getppid() may be a fork server's
    assert parent is not None
    run, signals = parent.pid, {signal.SIGTERM, signal.SIGUSR1}

    def wait() -> None:
        while signal.sigwaitinfo(signals).si_pid != run:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=wait, daemon=True).start()


class SetLoader:
    """Batches of sets for one rank: iterate it for one epoch of `SetBatch`.

    It holds a DataLoader instead of being one, because Lightning rewrites DataLoaders: it would shard a second time.

    Args:
        sampler: plans the batches.
        num_workers: processes that fetch batches; 0 fetches in this one.
        pin_memory: put batches into page-locked memory, for copies to a GPU.
        augment: changes the images of every batch.
        latents: of all images of the split, if batches are to have those of their images.

    Attributes:
        waited: seconds that this process has waited for batches, in all.
    """

    def __init__(
        self,
        sampler: SetSampler,
        num_workers: int = 0,
        pin_memory: bool = False,
        augment: Augmentation | None = None,
        latents: MappedRows | None = None,
    ) -> None:
        self.batch_sampler = sampler
        self.num_workers = num_workers
        self.waited = 0.0
        self._loader: DataLoader[SetBatch | DataError] = DataLoader(
            _PlannedSets(sampler.images, augment, sampler.seed, latents),
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_obey_the_run_alone,
        )
        self._epoch = 0
        self._sets = 0  # of this epoch that are delivered, on all ranks
        self._resuming = False

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[SetBatch]:
        """Deliver the sampler's epoch, from where a loaded state left it."""
        # As a generator this begins with the first batch that is asked for. Lightning makes the iterator of a run's
        # first epoch before it calls set_epoch: workers would fetch the sets of epoch 0 after every resume.
        self.batch_sampler.start = self._sets if self._resuming and self._epoch == self.batch_sampler.epoch else 0
        self._resuming = False
        self._epoch, self._sets = self.batch_sampler.epoch, self.batch_sampler.start
        ends = self.batch_sampler.bounds(self._sets)[1:].tolist()
        start = time.perf_counter()
        for batch, end in zip(self._loader, ends, strict=True):
            if isinstance(batch, DataError):
                raise batch
            self.waited += time.perf_counter() - start
            self._sets = end
            yield batch
            start = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """Position to resume from, in sets: batches may have another size then, and there may be other ranks.

        Lightning stores it in checkpoints, so that an epoch resumes where it stopped.
        """
        return {"epoch": self._epoch, "sets": self._sets}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a stored position when its epoch is iterated next."""
        self._epoch, self._sets, self._resuming = state["epoch"], self.position(state), True

    def position(self, state: dict[str, int]) -> int:
        """Sets of its epoch that a stored state has delivered; older ones count batches, which had the size of now."""
        return state["sets"] if "sets" in state else state["delivered"] * self.batch_sampler.global_batch

    @property
    def _iterator(self) -> Any:
        # Lightning looks for a loader's worker processes under this name, and ends them with the run.
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self._loader._iterator = value
