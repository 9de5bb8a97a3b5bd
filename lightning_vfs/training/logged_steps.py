"""Which batches end an optimizer step, how many steps a run has, and at which the trainer logs."""

from __future__ import annotations

import math

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler


def ends_step(trainer: pl.Trainer) -> bool:
    """Whether the optimizer steps on the batch at hand; otherwise gradients are accumulated further."""
    # A strategy that accumulates by itself does not step early on an epoch's last batch.
    last = trainer.is_last_batch and not trainer.strategy.handles_gradient_accumulation
    return last or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


def total_steps(trainer: pl.Trainer) -> float | None:
    """Optimizer steps of the whole run, including those before a resume; None if its end is unknown."""
    steps: float = trainer.estimated_stepping_batches
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or -1
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler) and epochs > 0 and math.isfinite(batches):
            # Lightning counts with the accumulation of the epoch at hand.
            accumulated = map(callback.get_accumulate_grad_batches, range(epochs))
            steps = sum(math.ceil(batches / number) for number in accumulated)
            steps = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
    return steps if 0 < steps < math.inf else None


def logs_now(trainer: pl.Trainer) -> bool:
    """Whether the batch at hand, at its end, ends a step after which the trainer logs; the same on all ranks."""
    # Not Lightning's should_update_logs: it is also true when the run is to stop, which one rank may know before the
    # others, but all must agree here.
    steps = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and steps % every == 0 and ends_step(trainer)
