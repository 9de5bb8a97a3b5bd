"""A training step without a trainer, for benchmarks and studies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lightning_vfs.training.optimizer import OptimizerConfig, build_adamw


class TrainingStep:
    """Call it with a batch: loss, backward pass, clipping by the norm and AdamW.

    Args:
        model: its parameters are trained, on its device.
        loss: batch -> loss, a scalar.
        precision: of autocast; float32 is none.
        clip: largest norm of the gradients.
        fused: whether AdamW is fused.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any], Tensor],
        precision: torch.dtype = torch.float32,
        clip: float = 1.0,
        fused: bool = True,
    ) -> None:
        self.model, self.loss, self.precision, self.clip = model, loss, precision, clip
        self.optimizer = build_adamw(model, OptimizerConfig(), fused=fused)
        self.device = next(model.parameters()).device

    def __call__(self, batch: Any) -> Tensor:
        """Train on a batch; its loss, which is not read on the host."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()
