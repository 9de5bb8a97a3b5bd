"""The Gaussian context of variational few-shot diffusion."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.modules.layers import initialize_linear


class GaussianContext(nn.Module):
    """Posterior over the context, given the encoder's: (b, d) -> mean and log-variance, (b, dim) each."""

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        dim = config.encoder.context_dim
        self.fc1 = nn.Linear(config.encoder.output_dim, dim)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(dim, 2 * dim)
        initialize_linear(self)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.fc2(self.act(self.fc1(context))).chunk(2, dim=-1)
        return mean, log_variance
