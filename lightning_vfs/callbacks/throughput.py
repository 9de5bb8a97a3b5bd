"""ThroughputCallback: how fast a run trains, how much of the device it uses, and whether the data keeps up."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.data.sets import SetLoader
from lightning_vfs.modules.cost import step_flops
from lightning_vfs.modules.vfsddpm import VFSDDPM, images_of
from lightning_vfs.training.logged_steps import logs_now


class ThroughputCallback(Callback):
    """Log how well training uses the machine, every `log_every_n_steps` of the trainer, over the steps since the last.

    - `train/images_per_second_per_rank` and `train/images_per_second`, of all ranks.
    - `train/tflops_per_second_per_rank`: of the model, as `modules.cost.step_flops` counts them, in 10^12.
    - `train/mfu`: that over the peak rate of the device in the trainer's precision (model FLOPs utilisation, 0 to 1);
      for GPUs that Lightning knows the rate of.
    - `train/data_wait_share`: seconds in which the training process waits for its next batch over all seconds (0 to 1);
      of the rank that waits longest, since the others wait for it. For the loaders of a SetDataModule.
    - `train/peak_memory_gib`: peak memory of tensors since the last time, in GiB, on the rank with the most; on
      CUDA.

    The time does not include validation, nor the evaluations and pictures at its end; it does include what other
    callbacks do between two steps, such as writing checkpoints. The first `log_every_n_steps` are left out: workers
    start, and compilation and the choice of kernels take place. The host waits for the device only when it logs.

    Args:
        max_data_wait_share: above it, a warning says once in a run that the data holds the training back, and what
            helps.

    Raises:
        ConfigError: `max_data_wait_share` is not between 0 and 1.
    """

    def __init__(self, max_data_wait_share: float = 0.2) -> None:
        if not 0 <= max_data_wait_share <= 1:
            raise ConfigError(
                f"ThroughputCallback.max_data_wait_share is {max_data_wait_share}; it must be between 0 and 1."
            )
        self.max_data_wait_share = max_data_wait_share

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._peak_flops = get_available_flops(trainer.strategy.root_device, _compute_dtype(trainer))
        self._images = self._flops = 0
        self._paused = 0.0
        self._last: tuple[float, float] | None = None
        self._warned = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._images += images_of(batch).shape[:2].numel()
        self._flops += _flops(pl_module, batch)
        if logs_now(trainer):
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._pause = _now(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._paused += _now(trainer) - self._pause

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the steps since the last time; collective."""
        loader = trainer.train_dataloader
        now, waited = _now(trainer) - self._paused, loader.waited if isinstance(loader, SetLoader) else 0.0
        last, self._last = self._last, (now, waited)
        images, flops, self._images, self._flops = self._images, self._flops, 0, 0
        peak = _peak_memory(trainer)
        if last is None:
            return
        seconds = now - last[0]
        mine = torch.tensor([(waited - last[1]) / seconds, peak], device=trainer.strategy.root_device)
        share, peak = trainer.strategy.reduce(mine, reduce_op="max").tolist()
        rate = images / seconds
        figures = {"images_per_second_per_rank": rate, "images_per_second": rate * trainer.world_size}
        if flops:
            figures["tflops_per_second_per_rank"] = flops / seconds / 1e12
        if flops and self._peak_flops:
            figures["mfu"] = flops / seconds / self._peak_flops
        if isinstance(loader, SetLoader):
            figures["data_wait_share"] = share
            self._warn(share, loader)
        if peak:
            figures["peak_memory_gib"] = peak / 2**30
        pl_module.log_dict({f"train/{name}": value for name, value in figures.items()})

    def _warn(self, share: float, loader: SetLoader) -> None:
        if share > self.max_data_wait_share and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"Training waits for data {share:.0%} of the time, more than the {self.max_data_wait_share:.0%} of "
                f"ThroughputCallback.max_data_wait_share; {loader.num_workers} worker(s) fetch it for each rank. What "
                "helps: more of them (--data.num_workers), the cache of decoded images on a fast local disk "
                "(--data.cache_dir), or fewer ranks on a machine whose processors are busy."
            )


def _compute_dtype(trainer: pl.Trainer) -> torch.dtype:
    """The type of most products in the trainer's precision, such as `bf16-mixed` or `transformer-engine`."""
    types = {"16": torch.float16, "bf16": torch.bfloat16, "64": torch.float64, "transformer": torch.int8}
    return types.get(str(trainer.precision).split("-")[0], torch.float32)


def _now(trainer: pl.Trainer) -> float:
    """Time at which the device has finished its work, in seconds."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()


def _flops(pl_module: pl.LightningModule, batch: Any) -> int:
    """Of the step on this batch; 0 for other modules than VFSDDPM."""
    if not isinstance(pl_module, VFSDDPM):
        return 0
    sets, set_size = images_of(batch).shape[:2]
    if pl_module.config.encoder.fills_slots:
        set_size = min(set_size, pl_module.config.sets.set_size)  # of larger ones a part is drawn
    return sets * step_flops(pl_module.config, set_size=set_size)


def _peak_memory(trainer: pl.Trainer) -> float:
    """Bytes of tensors at most on this rank's CUDA device since the last call; 0 elsewhere."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return float(peak)
