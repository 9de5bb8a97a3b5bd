"""What the blocks of all networks have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class NetworkBlock(nn.Module):
    """One of the equal blocks that a network consists of: the unit of activation checkpointing and of sharding.

    With `checkpoint_activations`, activations within a block are not kept for its gradients: the backward pass
    recomputes them (Chen et al. 2016, arXiv 1604.06174).
    """

    checkpoint_activations = False

    def forward(self, *args: Any) -> Any:
        """What `compute` gives."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            # Dropout follows keys, which are arguments: there is no generator whose state would have to be kept.
            return checkpoint(self.compute, *args, use_reentrant=False, preserve_rng_state=False)
        return self.compute(*args)

    @abstractmethod
    def compute(self, *args: Any) -> Any:
        """The block itself."""
