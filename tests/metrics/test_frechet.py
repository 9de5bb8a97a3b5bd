"""Fréchet distance: against its closed form, and against torch-fidelity."""

import math

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from lightning_vfs.metrics import frechet_distance
from lightning_vfs.metrics.frechet import is_low_rank

pytestmark = pytest.mark.numeric


def gaussian_sample(num, mean, deviation, seed):
    """Rows whose sample mean and covariance are exactly `mean` and diag(deviation^2)."""
    x = torch.randn(num, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (num - 1)).T)
    return (x * torch.tensor(deviation) + torch.tensor(mean)).float()


def features(num, dim, seed):
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0))
    return torch.relu(torch.randn(num, dim, generator=rng) @ mixing + 0.1 * seed)


def fidelity_command(a, b):
    return fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), verbose=False)[
        "frechet_inception_distance"
    ]


def test_closed_form_between_gaussians():
    a = gaussian_sample(200, [0.0, 1.0, 2.0], [1.0, 2.0, 0.5], seed=0)
    b = gaussian_sample(300, [1.0, 1.0, 0.0], [3.0, 2.0, 1.5], seed=1)
    # |difference of means|^2 + sum of (s_1 - s_2)^2, since both covariances are diagonal
    assert frechet_distance(a, b) == pytest.approx((1 + 4) + (4 + 0 + 1), rel=1e-5)


@pytest.mark.parametrize(("num", "num_real"), [(400, 300), (400, 20), (20, 400), (20, 30), (2, 2)])
def test_equals_torch_fidelity_above_and_below_the_feature_dimension(num, num_real):
    a, b = features(num, 32, seed=1), features(num_real, 32, seed=2)
    # Below the dimension torch-fidelity takes roots of eigenvalues that are rounding errors.
    tolerance = 1e-9 if min(num, num_real) > 32 else 1e-6
    assert frechet_distance(a, b) == pytest.approx(fidelity_command(a, b), rel=tolerance)


def test_is_zero_for_the_same_sample_and_symmetric():
    a, b = features(50, 8, seed=1), features(60, 8, seed=2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_is_nan_when_a_feature_is():
    a, b = features(50, 8, seed=1), features(60, 8, seed=2)
    a[3, 2] = math.nan
    assert math.isnan(frechet_distance(a, b))


@pytest.mark.parametrize("num", [2, 7, 8, 9, 20])
def test_low_rank_is_what_the_covariance_is(num):
    covariance = torch.cov(torch.randn(num, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T)
    assert is_low_rank(num, 8) == (torch.linalg.matrix_rank(covariance) < 8)
