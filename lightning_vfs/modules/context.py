"""Contexts: of a class, and the random ones of variational few-shot diffusion."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_vfs.core.categorical import gumbel_softmax, most_likely, uniform_kl_bits
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.gaussian import standard_gaussian_kl_bits
from lightning_vfs.modules.layers import initialize_linear
from lightning_vfs.training.precision import at_least_float32


class ClassContext(nn.Module):
    """One learned context for every training class: labels int64 (b,) -> (b, dim)."""

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(config.encoder.num_classes, config.encoder.dim))

    def forward(self, label: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        return self.table[label]


class GaussianContext(nn.Module):
    """Posterior over the context, given the encoder's: (..., d) -> mean and log-variance, (..., dim) each."""

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        dim = config.encoder.context_dim
        self.fc1 = nn.Linear(config.encoder.output_dim, dim)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(dim, 2 * dim)
        self.noise_shape = (*config.encoded_shape[:-1], dim)
        initialize_linear(self)

    def forward(self, context: Float[Tensor, "*b d"]) -> tuple[Float[Tensor, "*b dim"], Float[Tensor, "*b dim"]]:
        mean, log_variance = self.fc2(self.act(self.fc1(context))).chunk(2, dim=-1)
        return mean, log_variance

    def draw(
        self, context: Float[Tensor, "b *tokens d"], noise: Float[Tensor, " b *noise_shape"]
    ) -> tuple[Float[Tensor, "b *tokens dim"], Float[Tensor, " b"]]:
        """A context of the posterior by standard normal noise, (b, ..., dim), and its KL to N(0, I) in bits, (b,)."""
        mean, log_variance = self(context)
        kl = standard_gaussian_kl_bits(at_least_float32(mean), at_least_float32(log_variance))
        return mean + (0.5 * log_variance).exp() * noise, kl

    def mode(self, context: Float[Tensor, "*b d"]) -> Float[Tensor, "*b dim"]:
        """The posterior's mean: (b, ..., d) -> (b, ..., dim)."""
        return self(context)[0]


class DiscreteContext(nn.Module):
    """Codes in a learned codebook, given the encoder's context: (..., d) -> logits (..., groups, entries).

    A context is made of `codebook_groups` codes, each an entry of dim / groups features, so that few entries make many
    contexts (product quantization; the relaxation as in discrete variational few-shot diffusion, Giannone et al. 2022).
    """

    def __init__(self, config: VFSConfig) -> None:
        super().__init__()
        encoder = config.encoder
        self.groups, self.temperature = encoder.codebook_groups, encoder.gumbel_temperature
        self.logits = nn.Linear(encoder.output_dim, encoder.codebook_groups * encoder.codebook_size)
        self.codebook = nn.Parameter(
            torch.randn(encoder.codebook_groups, encoder.codebook_size, encoder.dim // encoder.codebook_groups)
        )
        self.noise_shape = (*config.encoded_shape[:-1], encoder.codebook_groups, encoder.codebook_size)
        initialize_linear(self)

    def forward(self, context: Float[Tensor, "*b d"]) -> Float[Tensor, "*b groups entries"]:
        return rearrange(at_least_float32(self.logits(context)), "... (g e) -> ... g e", g=self.groups)

    def draw(
        self, context: Float[Tensor, "b *tokens d"], noise: Float[Tensor, " b *noise_shape"]
    ) -> tuple[Float[Tensor, "b *tokens dim"], Float[Tensor, " b"]]:
        """A relaxed draw by uniform noise, (b, ..., dim), and the KL to uniform codes in bits, (b,)."""
        logits = self(context)
        return self._embed(gumbel_softmax(logits, noise, self.temperature)), uniform_kl_bits(logits)

    def mode(self, context: Float[Tensor, "*b d"]) -> Float[Tensor, "*b dim"]:
        """Context of the most likely codes: (b, ..., d) -> (b, ..., dim)."""
        return self._embed(most_likely(self(context)))

    def _embed(self, weights: Tensor) -> Tensor:
        return torch.einsum("...ge,ged->...gd", weights, self.codebook.to(weights.dtype)).flatten(-2)
