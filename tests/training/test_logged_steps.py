"""Which batches end an optimizer step, against what the trainer does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lightning_vfs.training.logged_steps import ends_step


class Steps(Callback):
    """What was foretold of every batch, and whether the optimizer has stepped."""

    def __init__(self) -> None:
        self.foretold: list[bool] = []
        self.stepped: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.before = trainer.global_step
        self.foretold.append(ends_step(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.stepped.append(trainer.global_step > self.before)
        assert ends_step(trainer) == self.stepped[-1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [True, True, True, True]),
        ({"accumulate_grad_batches": 3}, [False, False, True, True]),
        ({"accumulate_grad_batches": 2, "limit_train_batches": 3}, [False, True, True]),
    ],
)
def test_steps_are_foretold(
    trainer: Callable[..., Trainer], painter: type, data: type, options: dict[str, int], expected: list[bool]
) -> None:
    steps = Steps()
    trainer(steps, **options).fit(painter(), datamodule=data())
    assert steps.foretold == steps.stepped == 2 * expected
