"""Random numbers by global index."""

from __future__ import annotations

import torch

from lightning_vfs.modules.noise import indexed_normal, indexed_uniform


def test_normal_numbers_have_the_normal_distributions_moments() -> None:
    x = indexed_normal(torch.arange(4000), (256,), seed=0)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs((x.double() ** power).mean() - moment) < 0.02
    assert (torch.corrcoef(x[:8]) - torch.eye(8)).abs().max() < 0.3


def test_indices_seeds_and_streams_give_unrelated_numbers() -> None:
    index = torch.arange(1000)
    draws = [indexed_normal(index, (64,), seed, stream).flatten() for seed in (0, 1) for stream in (0, 1, -1)]
    draws.append(indexed_normal(index + 1, (64,), 0).flatten())
    assert (torch.corrcoef(torch.stack(draws)) - torch.eye(7)).abs().max() < 0.02


def test_a_sample_is_the_same_in_any_batch() -> None:
    whole = indexed_normal(torch.arange(10), (3, 4, 4), seed=5, stream=2)
    parts = [indexed_normal(torch.tensor([i]), (3, 4, 4), seed=5, stream=2) for i in range(10)]
    assert torch.equal(whole, torch.cat(parts))


def test_uniform_numbers_fill_the_unit_interval() -> None:
    u = indexed_uniform(torch.arange(100_000), seed=1)
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 10, 0, 1)
    assert (counts - 10_000).abs().max() < 500
