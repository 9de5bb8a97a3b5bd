"""The precision that computations need, whatever the precision of the weights."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_vfs.core.errors import ConfigError


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32, or float64 if they are: losses, noise and sampling lose too much in less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_precision(trainer: pl.Trainer) -> None:
    """Refuse a precision in which training fails, and warn about one in which it gets worse.

    Raises:
        ConfigError: weights in float16.
    """
    precision = str(trainer.precision)
    if precision == "16-true":
        raise ConfigError(
            "--trainer.precision 16-true keeps weights and AdamW's moments in float16, in which squares of gradients "
            "below 2e-4 are zero: the first steps divide by zero. Train in 16-mixed or bf16-mixed; validate, test and "
            "predict take 16-true."
        )
    if precision == "bf16-true":
        rank_zero_warn(
            "--trainer.precision bf16-true keeps the weights in bfloat16, which has 3 digits: updates that are small "
            "relative to the weights are lost, and images get worse. bf16-mixed is about as fast, and keeps them in "
            "float32."
        )
