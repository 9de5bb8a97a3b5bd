"""Fréchet distance between two samples of features, each summed up as a Gaussian."""

from __future__ import annotations

import math

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
    root_1, root_2 = _covariance_root(generated), _covariance_root(real)
    traces = root_1.square().sum() + root_2.square().sum()
    cross = torch.linalg.svdvals(root_1 @ root_2.T).sum()
    return max(0.0, float(mean_difference.dot(mean_difference)) + float(traces - 2 * cross))


def is_low_rank(num: int, dim: int) -> bool:
    """Whether the covariance of `num` images' `dim` features is rank deficient: A is then the centred features."""
    return num <= dim


def _covariance_root(features: Tensor) -> Tensor:
    """A of A^T A = covariance: the centred features themselves (n, d), or their triangular factor (d, d) if n > d."""
    features = features.double()
    centred = (features - features.mean(dim=0)) / math.sqrt(len(features) - 1)
    return centred if is_low_rank(*centred.shape) else torch.linalg.qr(centred, mode="r").R
