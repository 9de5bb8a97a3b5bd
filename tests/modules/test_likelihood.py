"""FewShotDiffusion.bits_per_dim: whose context, which noise, and that batches do not matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_vfs.core import ConfigError, SetSizeMismatchError, make_betas
from lightning_vfs.core.likelihood import BitsPerDim, bits_per_dim
from lightning_vfs.modules.noise import indexed_normal

pytestmark = pytest.mark.numeric

GENERATOR = torch.Generator().manual_seed(0)
X_0 = torch.randint(0, 256, (5, 3, 8, 8), generator=GENERATOR) / 127.5 - 1
SUPPORT = torch.randint(0, 256, (5, 4, 3, 8, 8), generator=GENERATOR) / 127.5 - 1
INDEX = torch.tensor([7, 0, 3, 12, 5])

VARIANTS: list[dict[str, Any]] = [
    {},
    {"encoder": {"time_token": "timestep", "context": "variational"}, "diffusion": {"variance": "learned_range"}},
    {"denoiser": {"dropout": 0.5}, "encoder": {"dropout": 0.5}, "diffusion": {"prediction": "v", "timesteps": 12}},
]


def assert_same(bound: BitsPerDim, other: Any) -> None:
    for a, b in zip(bound, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parts", VARIANTS)
def test_the_figure_of_an_image_does_not_depend_on_its_batch(tiny_model, parts: dict) -> None:
    model = tiny_model(**parts).train()
    bound = model.bits_per_dim(X_0, SUPPORT, INDEX, seed=3)
    steps = model.config.diffusion.timesteps
    assert [tuple(x.shape) for x in bound] == [(5,), (5,), (5, steps), (5, steps), (5, steps)]
    assert not any(x.requires_grad for x in bound) and bound.total.isfinite().all()
    torch.manual_seed(99)
    for size in (1, 3):
        batches = zip(X_0.split(size), SUPPORT.split(size), INDEX.split(size), strict=True)
        parts_of = [model.bits_per_dim(*batch, seed=3) for batch in batches]
        assert_same(bound, [torch.cat(field) for field in zip(*parts_of, strict=True)])
    assert model.training and model.denoiser.training


@pytest.mark.parametrize("parts", VARIANTS)
def test_every_image_is_given_the_context_of_its_support_at_the_timestep(tiny_model, parts: dict) -> None:
    model = tiny_model(**parts)
    alpha_bar = (1 - make_betas("cosine", model.config.diffusion.timesteps)).cumprod()
    drawn: dict[int, Tensor] = {}

    def record(module: Any, args: tuple[Tensor, Tensor, Tensor]) -> None:
        x_t, t, context = args
        torch.testing.assert_close(context, model.encode(SUPPORT, t))
        step = int(t[0])
        assert t.tolist() == [step] * 5 and step not in drawn
        drawn[step] = ((x_t - math.sqrt(alpha_bar[step]) * X_0) / math.sqrt(1 - alpha_bar[step])).float()

    with model.denoiser.register_forward_pre_hook(record):
        bound = model.bits_per_dim(X_0, SUPPORT, INDEX)
    assert sorted(drawn) == list(range(model.config.diffusion.timesteps))
    again = bits_per_dim(
        lambda x_t, t: model.denoiser(x_t, t, model.encode(SUPPORT, t)).detach(), X_0, model.diffusion, drawn.get
    )
    assert_same(bound, again)


def noises_of(model: Any, **options: Any) -> dict[int, Tensor]:
    """The noise of every timestep, divided by its deviation: what the denoiser is given of grey images."""
    seen: dict[int, Tensor] = {}
    with model.denoiser.register_forward_pre_hook(lambda module, args: seen.update({int(args[1][0]): args[0]})):
        model.bits_per_dim(torch.zeros_like(X_0), SUPPORT, INDEX, **options)
    return {t: x_t / x_t.std() for t, x_t in seen.items()}


def test_noise_is_of_image_timestep_and_seed_on_a_stream_of_its_own(tiny_model) -> None:
    model = tiny_model()
    noises, other_seed, respaced = noises_of(model), noises_of(model, seed=1), noises_of(model, steps=4)
    assert list(respaced) == [0, 6, 13, 19]
    for t, noise in respaced.items():
        torch.testing.assert_close(noise, noises[t])
    everything = torch.stack([*noises.values(), *other_seed.values()]).flatten(0, 1)
    others = [indexed_normal(INDEX, (3, 8, 8), 0, stream) for stream in range(-10, 20)]
    correlation = torch.corrcoef(torch.cat([everything, *others]).flatten(1))
    # 192 numbers that are independent correlate by 0.07.
    assert (correlation - torch.eye(len(correlation))).abs().max() < 0.5


def test_the_figure_follows_the_image_and_the_support(tiny_model) -> None:
    model = tiny_model()
    x_0, support = X_0.clone(), SUPPORT.clone()
    x_0[0], support[1] = -x_0[0], -support[1]
    bound, other = model.bits_per_dim(X_0, SUPPORT, INDEX, steps=4), model.bits_per_dim(x_0, support, INDEX, steps=4)
    difference = (other.total - bound.total).abs()
    assert difference[:2].min() > 1e-4 and difference[2:].max() < 1e-5


def test_impossible_requests_are_refused_by_name(tiny_model) -> None:
    model = tiny_model()
    for steps in (0, 21):
        with pytest.raises(ConfigError, match=f"{steps} sampling steps of a process of 20"):
            model.bits_per_dim(X_0, SUPPORT, INDEX, steps=steps)
    with pytest.raises(SetSizeMismatchError, match="has 6 images"):
        model.bits_per_dim(X_0, torch.zeros(5, 6, 3, 8, 8), INDEX)
    for broken in ((X_0[:1], SUPPORT, INDEX), (X_0, SUPPORT, INDEX[:1]), (X_0, SUPPORT[0], INDEX)):
        with pytest.raises(ValueError, match=r"takes images \(b, c, h, w\), their supports"):
            model.bits_per_dim(*broken)
