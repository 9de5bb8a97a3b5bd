"""Patch tokenization of a set."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from lightning_vfs.core.patches import stack_patches
from lightning_vfs.modules.layers import LAYER_NORM_EPS


class SPT(nn.Module):
    """Tokens of a set: patches of its images stacked as channels, LayerNorm, projection.

    Named after the shifted patch tokenization of Lee et al. 2021 (arXiv 2112.13492), but without shifts: as in few-shot
    diffusion models (Giannone et al. 2022, arXiv 2205.15463), the other images of the set take the place of the
    shifted copies. `patch_dim` is patch_size**2 * slots * channels.

    Shapes: (b, s, c, h, w) -> (b, l, dim), l = (h / patch_size) * (w / patch_size).
    """

    def __init__(self, patch_dim: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = nn.LayerNorm(patch_dim, eps=LAYER_NORM_EPS)
        self.proj = nn.Linear(patch_dim, dim)

    def forward(self, x_set: Float[Tensor, "b s c h w"]) -> Float[Tensor, "b l d"]:
        return self.proj(self.norm(stack_patches(x_set, self.patch_size).to(self.norm.weight.dtype)))
