"""EMACallback: an exponential moving average of the weights, and which weights the model has at the moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.training.logged_steps import total_steps
from lightning_vfs.training.optimizer import local
from lightning_vfs.training.precision import at_least_float32


class EMACallback(Callback):
    """Keep an exponential moving average (EMA) of the weights, which validation, figures and pictures then use.

    After every optimizer step, `average = d * average + (1 - d) * weights`, with `d = min(decay, (1 + n) / (10 + n))`
    for the n-th update if there is a warm-up (as TensorFlow's ExponentialMovingAverage with `num_updates`): the average
    forgets the initial weights from the start, even in a short run. It is kept in float32 or better, whatever the
    precision of the weights, and sharded if they are sharded (FSDP2).

    The model has the averaged weights during validation and after training, and is trained with its raw weights.
    Checkpoints hold both: `state_dict` the averaged ones, from the first update on, and `current_model_state` the raw
    ones. Checkpoints of Lightning's WeightAveraging can be resumed too. Only weights that this callback has averaged
    are exchanged: another model that the same trainer evaluates keeps its own.

    Args:
        decay: of the average, at least 0, below 1.
        warmup: start with a smaller decay, which rises with the number of updates.
        start_step: optimizer steps before the first update; until then the model's own weights are used.

    Raises:
        ConfigError: an option out of range, or Lightning's own averaging callback in the same trainer.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True, start_step: int = 0) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"EMACallback.decay is {decay!r}; it must be at least 0 and below 1.")
        if isinstance(start_step, bool) or not isinstance(start_step, int) or start_step < 0:
            raise ConfigError(f"EMACallback.start_step is {start_step!r}; it must be a whole number of at least 0.")
        self.decay, self.warmup, self.start_step = decay, warmup, start_step
        self.updates = 0
        self._step = 0  # optimizer steps taken when the average was last updated
        self._average: dict[str, Tensor] = {}
        # The weights in float32, if they are kept in less: an average moves by less than they can represent.
        self._in_full: list[Tensor] = []
        self._weights: dict[str, Tensor] | None = None  # the model's own, while the average is in their place
        self._validating = False  # and it is there for a validation
        self._model: pl.LightningModule | None = None

    # -- updates -----------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._update(trainer, pl_module)

    @torch.no_grad()
    def _update(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Include the latest optimizer step, unless that is done; two launches for a model of any size."""
        if trainer.global_step <= max(self._step, self.start_step):
            return
        self._step = trainer.global_step
        there = dict(pl_module.named_parameters())
        if self.updates:
            names = [name for name in self._average if name in there]
            averages = [self._average[name] for name in names]
            weights: list[Tensor] = [there[name] for name in names]
            if any(average.dtype != weight.dtype for average, weight in zip(averages, weights, strict=True)):
                self._in_full = self._in_full or [torch.empty_like(average) for average in averages]
                # Of shards, DTensor has no such operation.
                torch._foreach_copy_([local(full) for full in self._in_full], [local(weight) for weight in weights])
                weights = self._in_full
            get_ema_multi_avg_fn(self._decay())(averages, weights, self.updates)
        # For parameters that are trained from now on, the average starts here.
        new = {name: value for name, value in there.items() if value.requires_grad and name not in self._average}
        if new:
            self._average |= {name: at_least_float32(value).clone() for name, value in new.items()}
            self._in_full = []
        self.updates += 1

    def _decay(self) -> float:
        """Of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    # -- where the average is ----------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
        """The model has its averaged weights inside, if there are any; the previous ones are restored afterwards."""
        if trainer.training and pl_module is self._model:
            self._update(trainer, pl_module)  # callbacks may ask before this one's own turn
        if self._weights is not None or not self.holds(pl_module):
            yield
            return
        self._put_average(pl_module)
        try:
            yield
        finally:
            self._put_back(pl_module)

    def holds(self, pl_module: pl.LightningModule) -> bool:
        """Whether there is an average of this very model."""
        return self.updates > 0 and pl_module is self._model

    @torch.no_grad()
    def _put_average(self, pl_module: pl.LightningModule) -> None:
        there = _tensors(pl_module)
        self._weights = {name: there[name].clone() for name in self._average}
        for name, value in self._average.items():
            there[name].copy_(value)

    @torch.no_grad()
    def _put_back(self, pl_module: pl.LightningModule) -> None:
        weights, self._weights, self._validating = self._weights, None, False
        there = _tensors(pl_module)
        for name, value in (weights or {}).items():
            there[name].copy_(value)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        averaging_of(trainer)
        if stage != "fit":
            return
        if pl_module is not self._model:
            self._forget()
        elif self._weights is not None and self._is_in(pl_module):
            self._put_back(pl_module)
        elif self._weights is not None:
            self._forget()  # the user has loaded other weights
        self._model = pl_module

    def _is_in(self, pl_module: pl.LightningModule) -> bool:
        """Whether the model has the average, as this callback has left it."""
        there = _tensors(pl_module)
        return all(
            isinstance(value, DTensor) or torch.equal(there[name].cpu(), value.to(there[name].dtype).cpu())
            for name, value in self._average.items()
        )

    def _forget(self) -> None:
        self.updates, self._step, self._validating = 0, 0, False
        self._average, self._in_full, self._weights, self._model = {}, [], None, None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._follow(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._follow(pl_module)
        self._step = min(self._step, trainer.global_step)  # another trainer counts from 0
        steps = total_steps(trainer)
        if steps is not None and steps <= self.start_step:
            rank_zero_warn(
                f"EMACallback.start_step is {self.start_step}, but the run ends with step {steps}: there will be no "
                f"average, and figures and pictures will use the raw weights. Set start_step below {steps}."
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if pl_module is not self._model:
            return
        self._follow(pl_module)
        if stage == "fit" and self._weights is None and self.holds(pl_module):
            self._put_average(pl_module)  # the fit had nothing to do

    def _follow(self, pl_module: pl.LightningModule) -> None:
        """Move to the device and the memory format of the weights."""
        there = _tensors(pl_module)
        for kept in (self._average, self._weights or {}):
            for name, value in kept.items():
                kept[name] = torch.empty_like(there[name], dtype=value.dtype, requires_grad=False).copy_(value)
        self._in_full = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._weights is None and self.holds(pl_module):
            self._put_average(pl_module)
            self._validating = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._validating:
            self._put_back(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._weights is None and self.holds(pl_module):
            self._put_average(pl_module)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Options, by name, and the number of updates; the tensors are stored with the model's."""
        options = {name: getattr(self, name) for name in ("decay", "warmup", "start_step")}
        return {**options, "updates": self.updates, "latest_update_step": self._step}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The average becomes the checkpoint's `state_dict`, wherever it is at the moment."""
        if not self.holds(pl_module):
            return
        if self._weights is not None and not self._validating and not self._is_in(pl_module):
            return  # after training the user has loaded other weights
        found = checkpoint["state_dict"]
        checkpoint["state_dict"] = found | _by_all_names(self._average, pl_module)
        checkpoint["current_model_state"] = found | _by_all_names(self._weights or {}, pl_module)
        # As Lightning's WeightAveraging has it.
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.updates)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The trainer has loaded the checkpoint's averaged weights; to train, the model takes the raw ones."""
        if trainer.state.fn != TrainerFn.FITTING:
            if pl_module is self._model:
                self._forget()
            return
        self._forget()
        self._model = pl_module
        if not int(checkpoint.get("averaging_state", {}).get("n_averaged", 0)):
            return
        updates = int(checkpoint["averaging_state"]["n_averaged"])
        names = dict(pl_module.named_parameters())
        average = {name: value for name, value in checkpoint["state_dict"].items() if name in names}
        self.start_from(pl_module, average, updates, checkpoint["global_step"])
        pl_module.load_state_dict(checkpoint["current_model_state"])

    def start_from(self, pl_module: pl.LightningModule, average: Mapping[str, Tensor], updates: int, step: int) -> None:
        """Resume with an existing average.

        Args:
            pl_module: the model that it is of.
            average: its tensors, by the model's names.
            updates: number of its updates, at least 1.
            step: optimizer steps that it includes.
        """
        self._model, self.updates, self._step = pl_module, updates, step
        there = _tensors(pl_module)
        self._average = {
            name: at_least_float32(value.detach()) for name, value in average.items() if there[name].is_floating_point()
        }
        self._follow(pl_module)


def _by_all_names(values: dict[str, Tensor], pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """Values of parameters by every name that a state_dict has for them: tied ones have several."""
    first = {id(parameter): name for name, parameter in pl_module.named_parameters()}
    others = {
        name: values[first[id(parameter)]]
        for name, parameter in pl_module.named_parameters(remove_duplicate=False)
        if first[id(parameter)] in values
    }
    return values | others


def _tensors(pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """Parameters and buffers, by name."""
    return {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}


def averaging_of(trainer: pl.Trainer) -> EMACallback | None:
    """The callback that averages the trainer's weights, if there is one.

    Raises:
        ConfigError: it trains with Lightning's own, whose averaged weights would be ignored here.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    others = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
    if others and trainer.state.fn == TrainerFn.FITTING:
        raise ConfigError(
            f"The trainer has Lightning's {type(others[0]).__name__}, which waits for the device in every step, and "
            "whose average figures and pictures would ignore. Use lightning_vfs.EMACallback(decay=...), in YAML "
            "class_path: lightning_vfs.EMACallback; it resumes checkpoints of the other."
        )
    return next((callback for callback in callbacks if isinstance(callback, EMACallback)), None)


def weights_in_words(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    """Which weights `averaged_weights` evaluates, and of which step, such as `averaged weights of step 400`."""
    averaging = averaging_of(trainer)
    if averaging is not None and averaging.holds(pl_module):
        return f"averaged weights of step {trainer.global_step}"
    if trainer.state.fn == TrainerFn.FITTING or getattr(pl_module, "origin", None) is None:
        return f"weights of step {trainer.global_step}"
    return str(pl_module.origin)


@contextmanager
def averaged_weights(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """The model has its averaged weights inside, if there are any, and what it had before outside."""
    averaging = averaging_of(trainer)
    if averaging is None:
        yield
        return
    with averaging.applied(trainer, pl_module):
        yield
