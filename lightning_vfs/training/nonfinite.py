"""Training steps whose loss or gradients are not finite: they change no weight, and are reported in full."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_vfs.core.errors import NonFiniteLossError
from lightning_vfs.training.host_flag import HostFlag
from lightning_vfs.training.optimizer import gradient_norm, handles_scaling, local, scaler_of, skips_by_found_inf
from lightning_vfs.training.ranks import gather_objects

LISTED_SETS = 5
"""Sets that a message describes."""

WARNINGS = 10
"""Skipped steps of a run that get a warning each."""


def why_not_finite(module: nn.Module) -> str:
    """Why figures or images of a model are not finite, for a message: the weights that are not, or that all are."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    names = [name for name, value in tensors if not local(value.detach()).isfinite().all()]
    if not names:
        return "its weights are finite: the model may have diverged, or the sampler overflows at this precision"
    more = ", ..." if len(names) > 3 else ""
    return f"its weights {', '.join(names[:3])}{more} are not finite: use an earlier checkpoint"


@dataclass(frozen=True)
class SetLosses:
    """The sets of a batch and their losses; detached tensors on its device.

    Attributes:
        index: int64 (b,), global index of every set.
        timestep: int64 (b,).
        loss: (b,), before timesteps are weighted.
        label: int64 (b,), class of every set; None if the batch does not say.
    """

    index: Tensor
    timestep: Tensor
    loss: Tensor
    label: Tensor | None


class StepGuard:
    """Keeps optimizer steps with a non-finite loss or gradient from changing the weights; all ranks decide alike.

    A step is tested on the device, and nothing waits for a GPU: the host reads the result when the next step is about
    to change the weights, or when a checkpoint is about to be written.

    Args:
        skip: skip such a step with a warning; otherwise stop.

    Attributes:
        skipped: number of skipped steps, an int or a tensor of one.
        norm: of the gradients of the step that comes next, (); replicated where they are sharded.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.skipped: int | Tensor = 0
        self.norm: Tensor | None = None
        self._batches: list[_Batch] = []
        self._undecided: _Step | None = None
        self._warnings = 0

    def add(self, number: int, loss: Tensor, sets: SetLosses | None, first: bool) -> None:
        """Take note of a batch whose gradients are part of the next step.

        Args:
            number: of the batch in the epoch.
            loss: its mean over all ranks, detached, ().
            sets: of this rank; None where they are not known.
            first: no batch before it is part of that step.
        """
        if first:
            self._batches = []
        self._batches.append(_Batch(number, loss, sets))

    def before_step(self, module: pl.LightningModule, optimizer: Optimizer) -> None:
        """See to it that the optimizer's step, which comes next, changes nothing if it is not finite.

        Raises:
            NonFiniteLossError: this step or, on a GPU, the one before is not finite, and `skip` is false.
        """
        self.settle(module)
        batches, self._batches = self._batches, []
        scaler = scaler_of(module.trainer)
        if scaler is not None and handles_scaling(optimizer):
            scaler.unscale_(optimizer)
        self.norm = gradient_norm(optimizer)
        norm = local(self.norm)
        module.log("train/grad_norm", norm)
        # A gradient scaler looks for its scale by gradients that overflow, and leaves these steps out itself; a loss
        # that is not finite gives it such gradients.
        decisive = [batch.loss for batch in batches] + ([norm] if scaler is None else [])
        if not decisive:
            return
        bad = torch.stack([value.isfinite() for value in decisive]).all().logical_not()
        self.skipped = self.skipped + bad
        if self.skip:
            module.log("train/skipped_steps", self.skipped.float())
        trainer = module.trainer
        self._undecided = _Step(trainer.global_step + 1, trainer.current_epoch, batches, norm, HostFlag(bad))
        if scaler is None and skips_by_found_inf(optimizer):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        elif scaler is None:
            if self.settle(module):
                optimizer.zero_grad(set_to_none=True)
            return
        if not self._undecided.bad.is_late:
            self.settle(module)

    def settle(self, module: pl.LightningModule) -> bool:
        """Wait until it is known whether the last step was finite; True where it was left out. Collective.

        Raises:
            NonFiniteLossError: it was not, and `skip` is false.
        """
        step, self._undecided = self._undecided, None
        if step is None or not step.bad:
            return False
        if not self.skip:
            raise NonFiniteLossError(_full_report(step, module))
        self._warnings += 1
        if self._warnings <= WARNINGS:
            last = " Further ones get no warning." if self._warnings == WARNINGS else ""
            rank_zero_warn(f"{_report(step, module)}\nThis step is skipped: {int(self.skipped)} so far.{last}")
        return True


class _Batch(NamedTuple):
    number: int
    loss: Tensor
    sets: SetLosses | None


class _Step(NamedTuple):
    number: int
    epoch: int
    batches: list[_Batch]
    norm: Tensor
    bad: HostFlag


@dataclass(frozen=True, order=True)
class _Set:
    """A set of a step, in plain values; `place` is its number in the batch of its rank."""

    batch: int
    index: int
    rank: int
    place: int
    timestep: int
    loss: float
    label: int | None


def _full_report(step: _Step, module: pl.LightningModule) -> str:
    """`_report`, the state of the run, and what to do; collective."""
    checkpoint = gather_objects(_last_checkpoint(module.trainer))[0]
    precision = module.trainer.precision
    return (
        f"{_report(step, module)}\n"
        "The weights are those before this step. "
        + (f"The last checkpoint is {checkpoint}.\n" if checkpoint else "There is no checkpoint yet.\n")
        + "Check these images. If they are fine, try a lower --model.optimizer.learning_rate; "
        + "--trainer.gradient_clip_val 1; "
        + (f"--trainer.precision 32-true instead of {precision}; " if precision != "32-true" else "")
        + "or --model.skip_nonfinite true, which skips such steps and counts them. Then "
        + (f"resume with --ckpt_path {checkpoint}." if checkpoint else "start again.")
    )


def _report(step: _Step, module: pl.LightningModule) -> str:
    """What was not finite, and the classes, images and timesteps of the sets that it is from; collective."""
    name = f"optimizer step {step.number} (epoch {step.epoch})"
    loss = float(torch.stack([batch.loss for batch in step.batches]).mean()) if step.batches else None
    sets = sorted(one for part in gather_objects(_sets_of(step, module.global_rank)) for one in part)
    bad = [one for one in sets if not math.isfinite(one.loss)]
    if loss is None or math.isfinite(loss):
        head = f"The gradients of {name} are not finite (norm {float(step.norm)})"
        head += "" if loss is None else f", but its loss is ({loss:.4g})"
        which = f"; its {len(sets)} sets:"
    else:
        head = f"The loss of {name} is {loss}"
        which = f", by {len(bad) or 'none'} of its {len(sets)} sets{'' if bad else ' alone'}:"
    if not sets:
        return f"{head}. Its sets are not known: {type(module).__name__} has its own training_step or batch_loss."
    listed = bad or sets
    lines = _in_words(listed[:LISTED_SETS], module.trainer)
    more = [f"and {len(listed) - LISTED_SETS} more"] if len(listed) > LISTED_SETS else []
    return "\n  ".join([head + which, *lines, *more])


def _in_words(sets: list[_Set], trainer: pl.Trainer) -> list[str]:
    """A line for every set, with its class and images if the trainer's data module knows them."""
    describe = getattr(getattr(trainer, "datamodule", None), "describe_sets", None)
    if describe is not None:
        described = describe([one.index for one in sets])
        return [
            f"{words.class_name} (set {one.index}), timestep {one.timestep}, loss {one.loss:.4g}: "
            + ", ".join(words.images)
            for one, words in zip(sets, described, strict=True)
        ]
    return [
        f"set {one.place} of batch {one.batch} on rank {one.rank} (index {one.index}"
        f"{'' if one.label is None else f', label {one.label}'}), timestep {one.timestep}, loss {one.loss:.4g}"
        for one in sets
    ]


def _sets_of(step: _Step, rank: int) -> list[_Set]:
    """This rank's sets of a step."""
    sets = []
    for number, _, losses in step.batches:
        if losses is not None:
            labels = [None] * len(losses.index) if losses.label is None else losses.label.tolist()
            columns = (losses.index.tolist(), losses.timestep.tolist(), losses.loss.tolist(), labels)
            rows = enumerate(zip(*columns, strict=True))
            sets += [_Set(number, index, rank, place, t, loss, label) for place, (index, t, loss, label) in rows]
    return sets


def _last_checkpoint(trainer: pl.Trainer) -> str | None:
    """The newest file of the trainer's ModelCheckpoints."""
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    paths = {path for c in callbacks for path in (c.last_model_path, c.best_model_path, *c.best_k_models)}
    # A path is set before its file is written, and stays if it is not written.
    written = [path for path in paths if os.path.isfile(path)]
    return max(written, key=os.path.getmtime, default=None)
