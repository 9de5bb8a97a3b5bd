"""Timesteps of training: those with large losses are drawn more often, and weigh less; or all by a fixed density."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.core.errors import CheckpointError
from lightning_vfs.core.timestep_density import UNIFORM_SHARE

HISTORY = 10


class TimestepDensity:
    """Draws timestep t with probability p_t; moves to the device of its inputs, and never waits for that device.

    Args:
        probabilities: float64 (T,), which sum to 1.
    """

    def __init__(self, probabilities: np.ndarray) -> None:
        self.timesteps = len(probabilities)
        cumulative = probabilities.cumsum()
        self._cumulative = torch.from_numpy(cumulative / cumulative[-1]).float()
        self._weight = torch.from_numpy(1 / (self.timesteps * probabilities)).float()

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps and, for what is to be expected as with uniform timesteps, its weights.

        Args:
            uniform: uniform numbers in [0, 1), float32 (b,).

        Returns:
            t int64 (b,), and 1 / (T p_t), float32 (b,).
        """
        self._cumulative, self._weight = self._cumulative.to(uniform.device), self._weight.to(uniform.device)
        t = torch.searchsorted(self._cumulative, uniform, right=True).clamp(max=self.timesteps - 1)
        return t, self._weight[t]


class LossSecondMoment:
    """Draws timestep t with probability p_t proportional to the root mean square of its last 10 losses.

    Nichol and Dhariwal 2021, eq. 18. A share of 0.001 of all draws is uniform; all are until every timestep has 10
    losses. Losses that are infinite or not a number do not count. It is not a module: what it keeps is not a weight,
    and must not be averaged. It moves to the device of its inputs, and never waits for that device.

    Args:
        timesteps: number of timesteps T.
    """

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps
        # (T, 10), the oldest first. NaN stands for a loss that is still missing, and makes all probabilities NaN.
        self._losses = torch.full((timesteps, HISTORY), torch.nan, dtype=torch.float32)

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps, and what their losses are multiplied with for the mean over uniform timesteps to be expected.

        Args:
            uniform: uniform numbers in [0, 1), float32 (b,).

        Returns:
            t int64 (b,), and weights 1 / (T p_t), float32 (b,). Where all timesteps are alike these are
            `(uniform * T).long()` and 1.
        """
        self._losses = self._losses.to(uniform.device)
        rms = (self._losses**2).mean(dim=1).sqrt()
        p = (1 - UNIFORM_SHARE) * rms / rms.sum() + UNIFORM_SHARE / self.timesteps
        t = torch.searchsorted(p.cumsum(dim=0), uniform, right=True).clamp(max=self.timesteps - 1)
        weight = 1 / (self.timesteps * p[t])
        known = p.isfinite().all()
        return (
            torch.where(known, t, (uniform * self.timesteps).long()),
            torch.where(known, weight, torch.ones_like(weight)),
        )

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Remember the losses of timesteps; of equal ones in their order.

        Args:
            t: int64 (m,). With several ranks those of all, in the same order on each.
            loss: unweighted losses (m,).
        """
        if not len(t):
            return
        losses = self._losses.to(t.device)
        # Behind all timesteps, which end before it.
        t, order = torch.sort(torch.where(loss.isfinite(), t, self.timesteps), stable=True)
        loss = loss.detach().to(losses)[order]
        every = torch.arange(self.timesteps, device=t.device)
        start = torch.searchsorted(t, every)  # of every timestep's losses among the sorted ones
        count = torch.searchsorted(t, every, right=True) - start
        # The 10 to keep are numbers `count` to `count` + 9 of the 10 old losses followed by the `count` new ones.
        number = count[:, None] + torch.arange(HISTORY, device=t.device)
        old = losses.gather(1, number.clamp(max=HISTORY - 1))
        new = loss[(start[:, None] + number - HISTORY).clamp(0, len(t) - 1)]
        self._losses = torch.where(number < HISTORY, old, new)

    def state_dict(self) -> dict[str, Tensor]:
        """What has been seen: `losses`, float32 (T, 10), the oldest first; NaN where there are fewer."""
        return {"losses": self._losses}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            CheckpointError: it is of another number of timesteps.
        """
        losses = state["losses"]
        if losses.shape != self._losses.shape:
            raise CheckpointError(
                f"The checkpoint keeps losses of shape {tuple(losses.shape)} to draw timesteps by; a process of "
                f"{self.timesteps} timesteps has {tuple(self._losses.shape)}: resume with the number of timesteps that "
                "it was trained with, or with timestep_sampling 'uniform'."
            )
        self._losses = losses.to(self._losses)
