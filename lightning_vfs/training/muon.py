"""Muon for the matrices of the networks' blocks, AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from lightning_vfs.training.blocks import NetworkBlock


def block_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear layers within the blocks of a module's networks, each once.

    Not those of convolutions, embeddings and norms, nor of layers before, between and behind the blocks.
    """
    blocks = [block for block in module.modules() if isinstance(block, NetworkBlock)]
    weights = {id(layer.weight) for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
    return [parameter for parameter in module.parameters() if id(parameter) in weights and parameter.requires_grad]


class MuonAdamW(Optimizer):
    """torch.optim.Muon and torch.optim.AdamW as one optimizer: the groups of the first, then those of the second.

    Lightning's automatic optimization, learning rate schedules and checkpoints take one. As with fused AdamW, which it
    must be given for that, a step changes nothing if the attribute `found_inf`, a tensor (), is 1, and the host does
    not wait for it.

    Args:
        muon: of some parameters; from here on this one steps it.
        adamw: of others; likewise.
    """

    found_inf: Tensor | None = None

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self._muon, self._adamw = muon, adamw
        self._of_muon = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what the closure gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # After a checkpoint is loaded, these are other objects.
        self._muon.param_groups = self.param_groups[: self._of_muon]
        self._adamw.param_groups = self.param_groups[self._of_muon :]
        self._muon.state = self._adamw.state = self.state
        self._adamw.found_inf, self._adamw.grad_scale = self.found_inf, None  # type: ignore[attr-defined]
        self._adamw.step()
        if self.found_inf is None:
            self._muon.step()
        else:
            self._step_muon_unless(self.found_inf > 0)
        return loss

    def _step_muon_unless(self, bad: Tensor) -> None:
        """A step of Muon, which knows no `found_inf`: what it has changed is put back if it was bad."""
        changed = []
        for parameter in (p for group in self._muon.param_groups for p in group["params"] if p.grad is not None):
            momentum = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
            changed += [parameter, momentum]
        before = [tensor.clone() for tensor in changed]
        self._muon.step()
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(torch.where(bad, value, tensor))
