"""Which batches end an optimizer step, and the steps at which the trainer logs."""

from __future__ import annotations

import lightning.pytorch as pl


def ends_step(trainer: pl.Trainer) -> bool:
    """Whether the optimizer steps on the batch at hand; otherwise gradients are accumulated further."""
    # A strategy that accumulates by itself does not step early on an epoch's last batch.
    last = trainer.is_last_batch and not trainer.strategy.handles_gradient_accumulation
    return last or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


def logs_now(trainer: pl.Trainer) -> bool:
    """Whether the batch at hand, at its end, ends a step after which the trainer logs; the same on all ranks."""
    # Not Lightning's should_update_logs: it is also true when the run is to stop, of which one rank may know before the
    # others, and all have to meet here.
    steps = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and steps % every == 0 and ends_step(trainer)
