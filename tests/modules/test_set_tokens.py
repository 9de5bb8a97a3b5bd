"""Encoder `set_tokens`: every image is encoded once, and conditions all others of its set, but never itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.core import ConfigError
from tests.conftest import tiny_config
from tests.numerics import NETWORK, rounding

pytestmark = pytest.mark.numeric

X_SET = torch.rand(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
X_T = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(1))
T = torch.tensor([3, 7])
UNET = {
    "architecture": "unet",
    "channels": 8,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
}

MODELS: dict[str, dict[str, Any]] = {
    "film": {"encoder": {"pool": "patches"}},
    "film_of_vectors_head_projection": {"encoder": {"pool": "cls", "head_hidden_dim": 12, "projection_dim": 10}},
    "film_variational": {"encoder": {"pool": "mean", "context": "variational"}},
    "lag": {"encoder": {"pool": "patches"}, "denoiser": {"conditioning": "lag"}},
    "lag_timestep_every_token": {
        "encoder": {"pool": "none", "time_token": "timestep"},
        "denoiser": {"conditioning": "lag"},
    },
    "lag_unet_pooled": {
        "encoder": {"pool": "patches", "projection_dim": 10},
        "denoiser": {**UNET, "conditioning": "lag", "context_tokens": 4},
    },
}


def model_of(tiny_model: Any, name: str, **encoder: Any) -> VFSDDPM:
    parts = MODELS[name]
    return tiny_model(5, **parts | {"encoder": {"architecture": "set_tokens", **parts["encoder"], **encoder}})


def given_to_the_denoiser(model: VFSDDPM, x_set: Tensor, **options: Any) -> Any:
    """What the loss conditions the denoiser on."""
    given = []
    handle = model.denoiser.register_forward_pre_hook(lambda module, inputs: given.append(inputs[2]))
    numbers = model._random_numbers(x_set.shape[1], torch.arange(len(x_set)))
    if model.posterior is not None and "latent_noise" in numbers:
        numbers["latent_noise"] = torch.zeros_like(numbers["latent_noise"])  # draws the mode, as sampling takes it
    model.losses(x_set, T[: len(x_set)], **{**numbers, **options})
    handle.remove()
    return given[0]


def outputs(model: VFSDDPM, x_set: Tensor, **options: Any) -> Tensor:
    """The denoiser's, of noisy images that do not depend on the set: (b, n, c, h, w)."""
    b, n = x_set.shape[:2]
    context = given_to_the_denoiser(model, x_set, **options)
    return model.denoiser(X_T[: b * n], T[:b].repeat_interleave(n), context).unflatten(0, (b, n))


@pytest.mark.parametrize("name", MODELS)
def test_an_image_changes_nothing_of_its_own_condition_and_something_of_all_others(tiny_model: Any, name: str) -> None:
    model = model_of(tiny_model, name)
    x_set = X_SET.clone().requires_grad_()
    conditioned = outputs(model, x_set)
    for i in range(5):
        (gradient,) = torch.autograd.grad(conditioned[0, i].square().sum(), x_set, retain_graph=True)
        changes = gradient.abs().amax(dim=(2, 3, 4))
        assert changes[0, i] == 0
        assert (changes[0].index_select(0, torch.tensor([j for j in range(5) if j != i])) > 0).all()
        assert (changes[1] == 0).all()  # nor does another set


@pytest.mark.parametrize("name", MODELS)
def test_training_conditions_on_the_support_that_sampling_would_have(tiny_model: Any, name: str) -> None:
    """With the others as support; with fewer shots with the first of them; with any number of images in a set."""
    model = model_of(tiny_model, name, context_dropout=0.5)
    timed = model.config.encoder.time_token == "timestep"
    shots, dropped = torch.tensor([2, 4]), torch.zeros(2, 5, dtype=torch.bool)
    dropped[1, 2] = True
    bound = rounding(NETWORK, scale=2.0)
    for n, options in ((5, {}), (2, {}), (5, {"shots": shots, "dropped": dropped})):
        conditioned = outputs(model, X_SET[:, :n], **options)
        for b, i in ((0, 0), (0, n - 1), (1, 1), (1, min(2, n - 1))):
            others = torch.cat([X_SET[b, :i], X_SET[b, i + 1 : n]])
            support = others[: shots[b]] if options else others
            context = model.encode(support, T[b : b + 1] if timed else None)
            if options and dropped[b, i]:
                context = model.null_context.expand_as(context)
            alone = model.denoiser(X_T[b * n + i][None], T[b : b + 1], context)[0]
            torch.testing.assert_close(conditioned[b, i], alone, **bound)


@pytest.mark.parametrize("name", ["film", "lag"])
def test_the_order_of_a_support_does_not_matter_and_its_size_is_free(tiny_model: Any, name: str) -> None:
    model = model_of(tiny_model, name)
    denoised = [
        model.denoiser(X_T[:1], T[:1], model.encode(support))
        for support in (X_SET[0], X_SET[0].flip(0), X_SET[0].repeat(13, 1, 1, 1)[:64], X_SET[0, :1])
    ]
    torch.testing.assert_close(denoised[1], denoised[0], **rounding(NETWORK, scale=2.0))
    assert not torch.allclose(denoised[3], denoised[0], atol=1e-3)
    assert model.sample(X_SET[0].repeat(13, 1, 1, 1)[:64], num_images=2, steps=2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("name", ["film", "lag"])
def test_the_loss_of_a_set_does_not_depend_on_its_batch(tiny_model: Any, name: str) -> None:
    model = model_of(tiny_model, name, context_dropout=0.5, dropout=0.25).train()
    numbers = model._random_numbers(5, torch.arange(2))
    both, _ = model.losses(X_SET, T, **numbers)
    second, _ = model.losses(X_SET[1:], T[1:], **{key: value[1:] for key, value in numbers.items()})
    torch.testing.assert_close(both[1:], second, **rounding(NETWORK))


@pytest.mark.parametrize("name", ["film", "lag"])
def test_not_held_out_every_image_sees_the_whole_set(tiny_model: Any, name: str) -> None:
    parts = MODELS[name]
    encoder = {"architecture": "set_tokens", **parts["encoder"]}
    model = tiny_model(5, **parts | {"encoder": encoder, "sets": {"held_out": "none"}})
    conditioned = outputs(model, X_SET)
    alone = model.denoiser(X_T[3:4], T[:1], model.encode(X_SET[0]))[0]
    torch.testing.assert_close(conditioned[0, 3], alone, **rounding(NETWORK, scale=2.0))


def test_tokens_are_not_copied_for_every_image(tiny_model: Any) -> None:
    context = given_to_the_denoiser(model_of(tiny_model, "lag"), X_SET)
    assert context.tokens.shape == (2, 5 * 16, 16)
    assert context.seen.shape == (1, 5, 5 * 16)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"encoder": {"pool": "sum"}}, "its pool is 'sum'; it can pool by 'cls', 'mean', 'patches', 'none'"),
        ({"denoiser": {"conditioning": "lag"}}, "pool 'cls' leaves one vector of an image"),
        (
            {"encoder": {"pool": "patches"}, "denoiser": {"conditioning": "lag", "architecture": "my_package.Own"}},
            "takes a context of its own for every image: set conditioning to 'film'",
        ),
        ({"encoder": {"tokenizer": "per_image_mean"}}, "only 'set_vit' has tokenizer"),
    ],
)
def test_what_it_cannot_have_is_refused(parts: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny_config(**parts | {"encoder": {"architecture": "set_tokens", **parts.get("encoder", {})}})


def test_the_weights_know_nothing_of_the_set_size() -> None:
    def config(set_size: int) -> VFSConfig:
        return tiny_config(set_size, encoder={"architecture": "set_tokens"})

    assert config(3).patch_dim == config(9).patch_dim == 2**2 * 3
    large = VFSDDPM(config(9))
    large.load_state_dict(VFSDDPM(config(3)).state_dict())
