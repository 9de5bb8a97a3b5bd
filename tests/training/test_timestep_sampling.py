"""Importance sampling of timesteps, against a double-ended queue for every timestep."""

from __future__ import annotations

import io
from collections import deque

import pytest
import torch
from torch import Tensor

from lightning_vfs.core import CheckpointError, DiffusionConfig
from lightning_vfs.core.timestep_density import timestep_probabilities
from lightning_vfs.training.timestep_sampling import LossSecondMoment, TimestepDensity

pytestmark = pytest.mark.numeric

T = 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def batches(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of 0 to 40 timesteps and losses, so that one timestep may occur more than 10 times in a batch."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [0, *torch.randint(1, 41, (count - 1,), generator=generator).tolist()]
    skewed = [(torch.rand(size, generator=generator) ** 2 * T).long() for size in sizes]
    return [(t, torch.rand(len(t), generator=generator) * (1 + t)) for t in skewed]


def trained(sampler: LossSecondMoment | None = None) -> LossSecondMoment:
    """One that has 10 losses of every timestep."""
    sampler = sampler or LossSecondMoment(T)
    for t, loss in batches(30):
        sampler.update(t, loss)
    return sampler


def probabilities(queues: list[deque[float]]) -> Tensor:
    """Nichol and Dhariwal 2021, eq. 18, of which a thousandth is uniform."""
    rms = torch.tensor([(sum(loss**2 for loss in queue) / len(queue)) ** 0.5 for queue in queues], dtype=torch.float64)
    return 0.999 * rms / rms.sum() + 0.001 / T


def test_it_keeps_the_last_ten_losses_of_every_timestep_and_draws_by_them() -> None:
    sampler, queues = LossSecondMoment(T), [deque(maxlen=10) for _ in range(T)]
    uniform = random(50)
    was_uniform = was_not = 0
    for t, loss in batches(60):
        sampler.update(t, loss)
        for one_t, one_loss in zip(t.tolist(), loss.tolist(), strict=True):
            queues[one_t].append(one_loss)
        kept = sampler.state_dict()["losses"]
        for row, queue in zip(kept.tolist(), queues, strict=True):
            missing = 10 - len(queue)
            assert all(value != value for value in row[:missing]) and row[missing:] == list(queue)
        drawn, weight = sampler.draw(uniform)
        if min(map(len, queues)) < 10:
            was_uniform += 1
            assert torch.equal(drawn, (uniform * T).long()) and torch.equal(weight, torch.ones(50))
        else:
            was_not += 1
            p = probabilities(queues)
            expected = [int((p.cumsum(0) <= u).sum()) for u in uniform.double()]
            assert drawn.tolist() == expected
            torch.testing.assert_close(weight, (1 / (T * p[drawn])).float())
        assert drawn.dtype == torch.int64 and weight.dtype == torch.float32
    assert was_uniform > 2 and was_not > 20


def test_weighted_means_are_the_means_over_uniform_timesteps() -> None:
    sampler = trained()
    t, weight = sampler.draw((torch.arange(2**20) + 0.5) / 2**20)
    share = torch.bincount(t, minlength=T) / len(t)
    assert share.max() > 3 * share.min() > 0
    for f in (torch.ones(T), torch.arange(T).float(), random(T)):
        assert float((weight * f[t]).mean()) == pytest.approx(float(f.mean()), rel=1e-4)


@pytest.mark.parametrize("timesteps", [1, 20, 1000, 1024])
def test_new_ones_are_uniform_to_the_bit(timesteps: int) -> None:
    uniform = torch.cat([random(1000), torch.tensor([0.0, 1 - 2**-24])])
    t, weight = LossSecondMoment(timesteps).draw(uniform)
    assert torch.equal(t, (uniform * timesteps).long()) and torch.equal(weight, torch.ones(1002))
    assert t.min() == 0 and t.max() == timesteps - 1


def test_a_large_loss_is_drawn_often_and_the_ends_of_the_unit_interval_are_timesteps() -> None:
    sampler = LossSecondMoment(1000)
    every = torch.arange(1000).repeat(10)
    sampler.update(every, torch.where(every == 300, 1000.0, 1e-6))
    t, weight = sampler.draw(torch.cat([random(1000), torch.tensor([0.0, 1 - 2**-24])]))
    assert (t == 300).float().mean() > 0.99
    assert t[-2:].tolist() == [0, 999]
    assert weight[-1] == pytest.approx(1000, rel=2e-3)  # by the uniform share, no weight is above 1 / 0.001
    rare = 1e-6 + 0.999e-9
    t, _ = sampler.draw(torch.tensor([1 - (count + 0.5) * rare for count in range(600)]))
    assert t.tolist() == list(range(999, 399, -1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_losses_that_are_no_numbers_do_not_count(bad: float) -> None:
    sampler, expected = trained(), trained()
    sampler.update(torch.tensor([3, 5, 3, 0]), torch.tensor([bad, 2.0, 4.0, bad]))
    expected.update(torch.tensor([5, 3]), torch.tensor([2.0, 4.0]))
    assert torch.equal(sampler.state_dict()["losses"], expected.state_dict()["losses"])


def test_losses_of_zero_leave_it_uniform() -> None:
    sampler = LossSecondMoment(T)
    sampler.update(torch.arange(T).repeat(10), torch.zeros(10 * T))
    assert torch.equal(sampler.draw(random(50))[0], (random(50) * T).long())


def test_it_goes_on_from_its_state() -> None:
    file = io.BytesIO()
    sampler = trained()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    loaded = LossSecondMoment(T)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    t, loss = batches(2, seed=5)[1]
    for one in (sampler, loaded):
        one.update(t, loss)
    assert torch.equal(sampler.state_dict()["losses"], loaded.state_dict()["losses"])
    for ours, theirs in zip(sampler.draw(random(99)), loaded.draw(random(99)), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(CheckpointError, match=r"shape \(7, 10\) .* process of 8 timesteps has \(8, 10\)"):
        LossSecondMoment(8).load_state_dict(sampler.state_dict())


def test_a_state_stays_what_it_was_when_training_goes_on() -> None:
    sampler = trained()
    state = sampler.state_dict()
    before = state["losses"].clone()
    trained(sampler)
    assert torch.equal(state["losses"], before)


def test_gradients_of_losses_are_not_kept() -> None:
    sampler = LossSecondMoment(T)
    sampler.update(torch.tensor([1]), torch.ones(1, requires_grad=True))
    assert not sampler.state_dict()["losses"].requires_grad


def test_it_waits_for_no_device() -> None:
    """Tensors of the meta device have no values: whatever would copy one to the host raises."""
    for sampler in (LossSecondMoment(T), trained()):
        t, weight = sampler.draw(torch.zeros(4, device="meta"))
        assert t.device.type == weight.device.type == "meta" and t.shape == weight.shape == (4,)
    for sampler in (LossSecondMoment(T), trained()):
        sampler.update(torch.zeros(5, dtype=torch.int64, device="meta"), torch.zeros(5, device="meta"))
        assert sampler.state_dict()["losses"].device.type == "meta"


def test_a_density_draws_with_its_probabilities_and_weighs_by_their_inverse() -> None:
    config = DiffusionConfig(50, timestep_sampling="logit_normal", timestep_mean=0.8, timestep_sd=0.8)
    probabilities = timestep_probabilities(config)
    even = (torch.arange(200_000) + 0.5) / 200_000
    t, weight = TimestepDensity(probabilities).draw(even)
    drawn = torch.bincount(t, minlength=50).double() / len(t)
    torch.testing.assert_close(drawn, torch.from_numpy(probabilities), atol=1e-5, rtol=0)
    # What is weighted is expected as with uniform timesteps.
    torch.testing.assert_close((weight * t).double().mean(), torch.tensor(24.5, dtype=torch.float64), atol=0.1, rtol=0)
    assert weight.max() <= 1000
    ends, _ = TimestepDensity(probabilities).draw(torch.tensor([0.0, 1 - 2**-24]))
    assert ends.tolist() == [0, 49]
