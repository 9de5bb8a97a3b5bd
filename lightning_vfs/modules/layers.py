"""Layers that the set encoder and the denoiser share."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from lightning_vfs.core.embeddings import timestep_embedding
from lightning_vfs.core.requests import missing_timestep
from lightning_vfs.modules.dropout import Dropout

LAYER_NORM_EPS = 1e-6


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form) and dropout between: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate="tanh")
        self.drop = Dropout(dropout)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, " b *rest"], key: Int[Tensor, " b"] | None = None) -> Float[Tensor, " b *rest"]:
        return self.fc2(self.drop(self.act(self.fc1(x)), key))


class Projection(nn.Module):
    """Three linear layers with GELU (tanh form) and dropout between: (..., in_dim) -> (..., dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.fc3 = nn.Linear(hidden_dim, dim)
        self.act = nn.GELU(approximate="tanh")
        self.drop1 = Dropout(dropout)
        self.drop2 = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b *rest in_dim"], key: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b *rest dim"]:
        x = self.drop1(self.act(self.fc1(x)), key)
        return self.fc3(self.drop2(self.act(self.fc2(x)), key))


class TimestepMLP(nn.Module):
    """Two linear layers with SiLU between, on sinusoids of timesteps: t int or float (b,) -> (b, dim)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.fc1 = nn.Linear(in_dim, dim)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, t: Num[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        # Timesteps and their angles need float32, whatever the weights are in.
        sinusoids = timestep_embedding(t, self.in_dim, torch.float32)
        return self.fc2(self.act(self.fc1(sinusoids.to(self.fc1.weight.dtype))))


def required_timestep(t: Num[Tensor, " b"] | None) -> Num[Tensor, " b"]:
    """The timestep (b,) of an encoder that sees it; raises ValueError if there is none."""
    if t is None:
        raise missing_timestep()
    return t


def initialize_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer of the module."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def initialize_zero(*layers: nn.Module) -> None:
    """Zero weights and biases, so that a residual branch starts as the identity."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.zero_()
