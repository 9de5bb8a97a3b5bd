"""Fréchet distance between two samples of features, each summed up as a Gaussian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features (n, d) and (m, d), n and m at least 2; float >= 0.

    |mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2)), Heusel et al. 2017, eq. 6. With S = A^T A the last
    trace is the sum of singular values of A_1 A_2^T, which needs no square root of rounding errors and, for n < d, no
    d x d matrix: exact where the usual eigenvalues of S_1 S_2 lose half of the digits. It is this one form for any n
    and m; see `is_low_rank` for A. NaN when a feature is.
    """
    if not (generated.isfinite().all() and real.isfinite().all()):
        return math.nan
    generated, real = generated.cpu(), real.cpu()
    # NumPy's float32 mean, since torch-fidelity has it: a better one would give another figure than its command.
    mean_difference = generated.numpy().mean(axis=0) - real.numpy().mean(axis=0)
    return _distance(mean_difference.dot(mean_difference), _covariance_root(generated), _covariance_root(real))


def frechet_replicates(
    generated: Tensor, real: Tensor, groups_generated: Tensor, groups_real: Tensor, count: int
) -> list[float]:
    """`frechet_distance` without each group of images in turn: one pass over features, and two small roots a group.

    Args:
        generated: (n, d).
        real: (m, d).
        groups_generated: group of each generated image (n,), from 0.
        groups_real: of each real image (m,).
        count: of groups.

    Returns:
        One for each group; NaN where fewer than 2 images of a kind are left.
    """
    kinds = _Sums(generated, groups_generated), _Sums(real, groups_real)
    found = []
    for group in range(count):
        (mean_1, root_1), (mean_2, root_2) = (kind.without(group) for kind in kinds)
        finite = root_1.isfinite().all() and root_2.isfinite().all()
        found.append(_distance((mean_1 - mean_2).square().sum(), root_1, root_2) if finite else math.nan)
    return found


class _Sums:
    """Sums and products of features (n, d), less those of a group."""

    def __init__(self, features: Tensor, groups: Tensor) -> None:
        features = features.cpu().double()
        # Sums of squares lose fewer digits around the mean.
        self.origin, self.groups = features.mean(dim=0), groups
        self.centred = features - self.origin
        self.products = self.centred.T @ self.centred if not is_low_rank(*features.shape) else None

    def without(self, group: int) -> tuple[Tensor, Tensor]:
        """Mean (d,) and root of the covariance of the images that are not in a group."""
        apart = self.groups == group
        number, (_, dim) = int((~apart).sum()), self.centred.shape
        if self.products is None or is_low_rank(number, dim):
            left = self.centred[~apart]
            return self.origin + left.mean(dim=0), _covariance_root(left)
        left_out = self.centred[apart]
        mean = -left_out.sum(dim=0) / number
        covariance = (self.products - left_out.T @ left_out - number * mean.outer(mean)) / (number - 1)
        values, vectors = torch.linalg.eigh(covariance)
        return self.origin + mean, values.clamp(min=0).sqrt()[:, None] * vectors.T


def _distance(of_means: Any, root_1: Tensor, root_2: Tensor) -> float:
    """From the squared distance of means, and A of A^T A = covariance."""
    traces = root_1.square().sum() + root_2.square().sum()
    cross = torch.linalg.svdvals(root_1 @ root_2.T).sum()
    return max(0.0, float(of_means) + float(traces - 2 * cross))


def is_low_rank(num: int, dim: int) -> bool:
    """Whether the covariance of `num` images' `dim` features is rank deficient: A is then the centred features."""
    return num <= dim


def _covariance_root(features: Tensor) -> Tensor:
    """A of A^T A = covariance: the centred features themselves (n, d), or their triangular factor (d, d) if n > d."""
    features = features.double()
    centred = (features - features.mean(dim=0)) / math.sqrt(len(features) - 1)
    return centred if is_low_rank(*centred.shape) else torch.linalg.qr(centred, mode="r").R
