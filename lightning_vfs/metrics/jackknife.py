"""Figures without each group of images in turn: the replicates of the delete-a-group jackknife."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vfs.metrics.fidelity import FidelityOptions, fidelity_figures
from lightning_vfs.metrics.frechet import frechet_replicates

CHUNK = 2**22
"""Values of a kernel held at a time."""


class Groups(NamedTuple):
    """Groups that are left out in turn, with their generated images, their real images and their classes.

    Attributes:
        number: of groups, G; some may be empty.
        generated: group of each generated image (n,), from 0.
        real: of each real image (m,).
        classes: of each class (classes,); None where groups are of images, and no class is left out.
    """

    number: int
    generated: Tensor
    real: Tensor
    classes: Tensor | None = None

    @property
    def keep(self) -> Tensor:
        """Generated images in the figure itself and in the replicate without each group, bool (n, 1 + G)."""
        return torch.cat(
            [torch.ones(len(self.generated), 1).bool(), self.generated[:, None] != torch.arange(self.number)], dim=1
        )


def fidelity_replicates(
    metric: str, generated: Tensor, real: Tensor, groups: Groups, options: FidelityOptions
) -> dict[str, list[float]]:
    """Replicates of `fid`, `kid` or `isc`, from features (n, d) and (m, d) on the CPU.

    KID's are of all images at once, of which its subsets are samples. A replicate that cannot be computed is NaN.
    """
    used = (generated,) if metric == "isc" else (generated, real)
    if not all(features.isfinite().all() for features in used):
        return {metric: [math.nan] * groups.number}
    if metric == "fid":
        return {"fid": frechet_replicates(generated, real, groups.generated, groups.real, groups.number)}
    if metric == "kid":
        return {"kid": kid_replicates(generated, real, groups, options)}
    left = [generated[groups.generated != group] for group in range(groups.number)]
    enough = [len(each) >= options.isc_splits for each in left]
    return {
        "isc": [
            fidelity_figures("isc", each, real, options)["isc"] if possible else math.nan
            for each, possible in zip(left, enough, strict=True)
        ]
    }


def kid_replicates(generated: Tensor, real: Tensor, groups: Groups, options: FidelityOptions) -> list[float]:
    """Unbiased squared MMD (Gretton et al. 2012, eq. 3) without each group, from sums of the kernel over groups."""
    x, y = generated.double(), real.double()
    in_x, in_y = (torch.nn.functional.one_hot(of, groups.number).double() for of in (groups.generated, groups.real))
    within_x, within_y = _kernel_sums(x, in_x, x, in_x, options), _kernel_sums(y, in_y, y, in_y, options)
    between = _kernel_sums(x, in_x, y, in_y, options)
    for sums, rows, of in ((within_x, x, in_x), (within_y, y, in_y)):
        sums -= (of.T @ _kernel(rows.square().sum(dim=1), x.shape[1], options)).diag()
    n, m = (len(each) - each.sum(dim=0) for each in (in_x, in_y))
    parts = ((within_x, n * (n - 1)), (within_y, m * (m - 1)), (between, -n * m / 2))
    left = [(sums.sum() - sums.sum(dim=0) - sums.sum(dim=1) + sums.diagonal()) / pairs for sums, pairs in parts]
    found: list[float] = torch.stack(left).sum(dim=0).tolist()
    return found


def _kernel(products: Tensor, dim: int, options: FidelityOptions) -> Tensor:
    gamma = 1 / dim if options.kid_kernel_poly_gamma is None else options.kid_kernel_poly_gamma
    return (products * gamma + options.kid_kernel_poly_coef0) ** options.kid_kernel_poly_degree


def _kernel_sums(x: Tensor, in_x: Tensor, y: Tensor, in_y: Tensor, options: FidelityOptions) -> Tensor:
    """Sums of the kernel between the images of two groups, (G, G)."""
    step = max(1, CHUNK // len(y))
    found = torch.zeros(in_x.shape[1], in_y.shape[1], dtype=torch.float64)
    for start in range(0, len(x), step):
        kernel = _kernel(x[start : start + step] @ y.T, x.shape[1], options)
        found += in_x[start : start + step].T @ (kernel @ in_y)
    return found


def minima_without(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Least value of each row, and without the columns of each group in turn.

    Args:
        values: (n, m).
        groups: of each column (m,), from 0.
        count: of groups, G.

    Returns:
        (n, 1 + G); infinite where no column is left.
    """
    least = values.new_full((len(values), count), math.inf)
    least = least.scatter_reduce(1, groups.expand_as(values), values, "amin")
    first, where = least.min(dim=1, keepdim=True)
    second = least.scatter(1, where, math.inf).amin(dim=1, keepdim=True)
    return torch.cat([first, torch.where(where == torch.arange(count), second, first)], dim=1)
