"""The steps at which the trainer logs."""

from __future__ import annotations

import lightning.pytorch as pl


def logs_now(trainer: pl.Trainer) -> bool:
    """Whether the batch at hand, at its end, ends a step after which the trainer logs; the same on all ranks."""
    # Not Lightning's should_update_logs: it is also true when the run is to stop, of which one rank may know before the
    # others, and all have to meet here.
    steps = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and steps % every == 0 and not trainer.fit_loop._should_accumulate()
