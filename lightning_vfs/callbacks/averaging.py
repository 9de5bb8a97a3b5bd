"""The averaged weights, wherever they are at the moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_vfs.modules.sharding import averaging_of


@contextmanager
def averaged_weights(trainer: pl.Trainer, pl_module: pl.LightningModule, caller: Callback) -> Iterator[None]:
    """The module has its averaged weights inside, and what it had before outside.

    Lightning's WeightAveraging (and EMAWeightAveraging) puts the average into the module while it validates, and takes
    it out in its own `on_validation_epoch_end`: for callbacks that come later in the list, and for those that run in
    training, the weights are the raw ones. It also puts in an average that was never updated, which is the model as it
    was before training; the raw weights are better.

    Without such a callback, or where it has no average since nothing was trained, nothing changes: a checkpoint's
    weights are the averaged ones already.

    Args:
        caller: the callback that asks, in its `on_validation_epoch_end`, `on_test_epoch_end` or `on_train_batch_end`.
    """
    averaging = averaging_of(trainer)
    if averaging is None or averaging._average_model is None:
        yield
        return
    wanted = int(averaging._average_model.n_averaged) > 0
    # Lightning keeps no flag of where the average is: it follows from the hook and from the order of callbacks.
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    there = bool(trainer.validating) and callbacks.index(averaging) > callbacks.index(caller)
    if wanted == there:
        yield
        return
    averaging._swap_models(pl_module)
    try:
        yield
    finally:
        averaging._swap_models(pl_module)
