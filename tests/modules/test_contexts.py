"""Contexts in training and in generation: variational ones, the null context and guidance, shots, and the baselines."""

from __future__ import annotations

import pytest
import torch

from lightning_vfs import VFSDDPM
from lightning_vfs.core import ConfigError, GaussianDiffusion
from lightning_vfs.core.samplers import sample
from lightning_vfs.modules.noise import START, indexed_normal
from tests.numerics import NETWORK, rounding, sampling_gain

pytestmark = pytest.mark.numeric

X_SET = torch.randn(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
SUPPORT, INDEX = X_SET[:, :5], torch.arange(2)


def lag(**encoder) -> dict:
    return {"encoder": {"pool": "patches", **encoder}, "denoiser": {"conditioning": "lag"}}


# -- variational contexts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [False, True])
def test_a_gaussian_context_is_drawn_in_training_and_its_mean_when_sampling(tiny_model, tokens: bool) -> None:
    model = tiny_model(**(lag(context="variational") if tokens else {"encoder": {"context": "variational"}}))
    encoded = model.context(X_SET)
    mean, log_variance = model.posterior(encoded)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    drawn, kl = model.posterior.draw(encoded, noise)
    torch.testing.assert_close(drawn, mean + (log_variance / 2).exp() * noise)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    nats = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, nats.flatten(1).mean(dim=1) / torch.tensor(2.0).log())
    support_mean = model.posterior(model.encoder(torch.cat([SUPPORT, torch.zeros_like(SUPPORT[:, :1])], dim=1)))[0]
    torch.testing.assert_close(model.encode(SUPPORT), support_mean)


@pytest.mark.parametrize("tokens", [False, True])
def test_a_discrete_context_is_made_of_codes(tiny_model, tokens: bool) -> None:
    options = {"context": "variational_discrete", "codebook_size": 5, "codebook_groups": 4}
    model = tiny_model(**(lag(**options) if tokens else {"encoder": options}))
    encoded = model.context(X_SET)
    logits = model.posterior(encoded)
    assert logits.shape == (12, *([16] if tokens else []), 4, 5)
    uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1))
    drawn, kl = model.posterior.draw(encoded, uniform)
    weights = ((logits - (-uniform.log()).log()) / model.config.encoder.gumbel_temperature).softmax(dim=-1)
    codebook = model.posterior.codebook
    expected = torch.cat([weights[..., g, :] @ codebook[g] for g in range(4)], dim=-1)
    bound = rounding(
        NETWORK, scale=float(codebook.detach().abs().max()), gain=1 / model.config.encoder.gumbel_temperature
    )
    torch.testing.assert_close(drawn, expected, **bound)
    entropy = torch.distributions.Categorical(logits=logits).entropy() / torch.tensor(2.0).log()
    torch.testing.assert_close(kl, (torch.tensor(5.0).log2() - entropy).flatten(1).mean(dim=1))
    context = model.encode(SUPPORT)
    for group, part in enumerate(context.split(4, dim=-1)):
        distance = (part.reshape(-1, 1, 4) - codebook[group]).abs().amax(dim=-1).min(dim=-1).values
        assert distance.max() < 1e-5  # each part of the context is an entry of its codebook


@pytest.mark.parametrize("context", ["variational", "variational_discrete"])
def test_the_kl_is_weighted_and_averaged_over_images(tiny_model, context: str) -> None:
    light, heavy = (tiny_model(encoder={"context": context, "kl_weight": weight}) for weight in (0.0, 2.0))
    batch = {"images": X_SET, "index": INDEX}
    _, kl = heavy.losses(X_SET, torch.tensor([3, 7]), **heavy._random_numbers(6, INDEX))
    assert kl.shape == (2,)
    torch.testing.assert_close(heavy.batch_loss(batch) - light.batch_loss(batch), 2 * kl.mean(), rtol=1e-4, atol=1e-5)


# -- null context and guidance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [False, True])
def test_dropped_images_see_the_null_context_and_nothing_of_their_set(tiny_model, tokens: bool) -> None:
    model = tiny_model(**(lag(context_dropout=0.5) if tokens else {"encoder": {"context_dropout": 0.5}}))
    t, noise = torch.tensor([3, 7]), torch.randn(X_SET.shape, generator=torch.Generator().manual_seed(1))
    everything, nothing = torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)
    dropped = model.loss(X_SET, t, noise, dropped=everything)
    x_t = model.diffusion.q_sample(X_SET.flatten(0, 1), t.repeat_interleave(6), noise.flatten(0, 1))
    null = model.null_context.expand(12, *model.config.context_shape)
    prediction = model.denoiser(x_t, t.repeat_interleave(6), null)
    torch.testing.assert_close(dropped, ((prediction - noise.flatten(0, 1)) ** 2).mean())
    assert not torch.isclose(model.loss(X_SET, t, noise, dropped=nothing), dropped)
    torch.testing.assert_close(model.loss(X_SET, t, noise, dropped=nothing), model.loss(X_SET, t, noise))


def test_contexts_are_dropped_as_often_as_asked_for_in_training_alone(tiny_model) -> None:
    model = tiny_model(encoder={"context_dropout": 0.2}).train()
    dropped = model._random_numbers(6, torch.arange(2000))["dropped"]
    assert dropped.shape == (2000, 6)
    assert dropped.float().mean() == pytest.approx(0.2, abs=0.01)
    assert dropped.float().mean(dim=0) == pytest.approx([0.2] * 6, abs=0.03)
    assert "dropped" not in model.eval()._random_numbers(6, torch.arange(4))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_guidance_extrapolates_from_the_null_context_within_its_interval(
    tiny_model, tokens: bool, variance: str
) -> None:
    parts = lag(context_dropout=0.5) if tokens else {"encoder": {"context_dropout": 0.5}}
    model = tiny_model(**parts, diffusion={"variance": variance, "prediction": "v"})
    context = model.encode(SUPPORT)
    null = model.null_context.expand_as(context)

    def denoise(x_t: torch.Tensor, t: torch.Tensor, step: int) -> torch.Tensor:
        conditional, unconditional = model.denoiser(x_t, t, context), model.denoiser(x_t, t, null)
        if not 5 <= int(t[0]) < 15:
            return conditional
        prediction = unconditional[:, :3] + 3 * (conditional - unconditional)[:, :3]
        return torch.cat([prediction, conditional[:, 3:]], dim=1)

    process = GaussianDiffusion(model.config.diffusion).respaced(7)
    with torch.no_grad():
        expected = sample(denoise, indexed_normal(INDEX, (3, 8, 8), 0, START), process, "ddim").clamp(-1, 1)
    images = model.generate(SUPPORT, INDEX, steps=7, guidance_scale=3.0, guidance_interval=(5, 15))
    gain = sampling_gain(model.config.diffusion, guidance_scale=3.0)
    torch.testing.assert_close(images, expected, **rounding(7 * NETWORK, gain=gain))
    assert not torch.allclose(images, model.generate(SUPPORT, INDEX, steps=7), atol=1e-3)
    nowhere = model.generate(SUPPORT, INDEX, steps=7, guidance_scale=3.0, guidance_interval=(20, 21))
    torch.testing.assert_close(nowhere, model.generate(SUPPORT, INDEX, steps=7), **rounding(7 * NETWORK))


def test_a_loss_is_not_computed_from_half_of_what_it_needs(tiny_model) -> None:
    t, noise = torch.tensor([3, 7]), torch.zeros_like(X_SET)
    with pytest.raises(ValueError, match="give `latent_noise`"):
        tiny_model(encoder={"context": "variational"}).loss(X_SET, t, noise)
    with pytest.raises(ValueError, match="has no null context"):
        tiny_model().loss(X_SET, t, noise, dropped=torch.ones(2, 6, dtype=torch.bool))


def test_guidance_of_a_model_without_a_null_context_is_refused(tiny_model) -> None:
    with pytest.raises(ConfigError, match=r"guidance_scale is 2.0, but .*context_dropout 0.1"):
        tiny_model().sample(SUPPORT, steps=2, guidance_scale=2.0)


# -- shots -----------------------------------------------------------------------------------------------------------

ENCODERS = {
    "stack": {},
    "per_image_mean": {"tokenizer": "per_image_mean"},
    "per_slot_mean": {"tokenizer": "per_slot_mean"},
    "vit": {"architecture": "vit", "pool": "mean"},
    "unet": {"architecture": "unet", "pool": "mean", "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1},
}


@pytest.mark.parametrize("held_out", ["zero_slot", "drop", "none"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_with_fewer_shots_is_sampling_from_a_smaller_support(tiny_model, encoder: str, held_out: str) -> None:
    """The context that training makes of the first images of a set is the one that `encode` makes of these alone."""
    model = tiny_model(sets={"random_shots": True, "held_out": held_out}, encoder=ENCODERS[encoder])
    shots = torch.tensor([2, 3])
    contexts = model.context(X_SET, shots=shots).reshape(2, 6, -1)
    for row, count in enumerate(shots.tolist()):
        others = X_SET[row, :count] if held_out == "none" else X_SET[row, 1 : 1 + count]
        torch.testing.assert_close(contexts[row, 0], model.encode(others)[0], rtol=1e-4, atol=1e-5)


def test_shots_are_drawn_from_1_to_k_for_every_set_in_training_alone(tiny_model) -> None:
    model = tiny_model(sets={"random_shots": True}).train()
    shots = model._random_numbers(6, torch.arange(5000))["shots"]
    counts = torch.bincount(shots, minlength=6).tolist()
    assert len(counts) == 6
    assert counts[0] == 0
    assert counts[1:] == pytest.approx([1000] * 5, rel=0.1)
    assert torch.equal(shots[7:9], model._random_numbers(6, torch.tensor([7, 8]))["shots"])
    assert "shots" not in model.eval()._random_numbers(6, torch.arange(4))
    assert "shots" not in tiny_model().train()._random_numbers(6, torch.arange(4))


# -- baselines -------------------------------------------------------------------------------------------------------


def class_conditional(tiny_model, **encoder) -> VFSDDPM:
    return tiny_model(encoder={"architecture": "class_label", "num_classes": 3, **encoder})


def test_a_class_conditional_model_draws_by_its_label(tiny_model) -> None:
    model = tiny_model(encoder={"architecture": "class_label", "num_classes": 3}, diffusion={"prediction": "v"})
    images = model.sample(label=torch.tensor([0, 2]), num_images=3, steps=4)
    assert images.shape == (2, 3, 3, 8, 8)
    # Image 3 of the batch is the first of label 2: the same noise with another label is another image.
    of_label_0 = model.generate(None, torch.arange(6), steps=4, label=torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(images[0], of_label_0[:3], **rounding(4 * NETWORK))
    assert (images[1] - of_label_0[3:]).abs().max() > 1e-3
    torch.testing.assert_close(model.sample(label=0, num_images=3, steps=4), images[0], **rounding(4 * NETWORK))


def test_a_class_conditional_model_learns_from_labels(tiny_model) -> None:
    model = class_conditional(tiny_model)
    batch = {"images": X_SET, "index": INDEX, "label": torch.tensor([0, 2])}
    assert not torch.isclose(model.batch_loss(batch), model.batch_loss({**batch, "label": torch.tensor([1, 2])}))
    model.train().batch_loss(batch).backward()
    touched = model.encoder.table.grad.abs().sum(dim=1) > 0
    assert touched.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="give it `label`, integers"):
        model.batch_loss({"images": X_SET, "index": INDEX})


def test_an_unconditional_model_draws_from_noise_alone(tiny_model) -> None:
    model = tiny_model(encoder={"architecture": "none"})
    images = model.sample(num_images=4, steps=4)
    assert images.shape == (4, 3, 8, 8)
    torch.testing.assert_close(images, model.generate(None, torch.arange(4), steps=4))
    assert model.context(X_SET) is None
    assert model.bits_per_dim(X_SET[:, 0], None, INDEX, steps=3).total.shape == (2,)


def test_what_a_model_is_not_conditioned_on_is_refused_and_not_ignored(tiny_model) -> None:
    unconditional, by_label, few_shot = (
        tiny_model(encoder={"architecture": "none"}),
        class_conditional(tiny_model),
        tiny_model(),
    )
    with pytest.raises(ValueError, match="not conditioned on a support .*'none'.*: leave it out"):
        unconditional.sample(SUPPORT, steps=2)
    with pytest.raises(ValueError, match="not conditioned on a class label .*'none'"):
        unconditional.sample(label=1, steps=2)
    with pytest.raises(ValueError, match="not conditioned on a support .*'class_label'"):
        by_label.sample(SUPPORT, steps=2)
    with pytest.raises(ValueError, match="labels of training classes from 0 to 2"):
        by_label.sample(steps=2)
    with pytest.raises(ValueError, match=r"There is no class 3, 7: this model knows only its 3 training classes"):
        by_label.sample(label=torch.tensor([7, 0, 3]), steps=2)
    with pytest.raises(ValueError, match="is conditioned on a support"):
        few_shot.sample(steps=2)
    with pytest.raises(ValueError, match="is conditioned on a support"):
        few_shot.sample(SUPPORT, label=1, steps=2)
    with pytest.raises(ValueError, match="not conditioned on a support"):
        by_label.encode(SUPPORT)


def test_a_class_conditional_model_can_be_guided(tiny_model) -> None:
    model = class_conditional(tiny_model, context_dropout=0.1)
    plain = model.sample(label=1, num_images=2, steps=4)
    assert not torch.allclose(model.sample(label=1, num_images=2, steps=4, guidance_scale=3.0), plain, atol=1e-3)


def test_the_denoiser_sees_images_twice_only_in_the_interval(tiny_model) -> None:
    model, rows = tiny_model(encoder={"context_dropout": 0.5}), []
    model.denoiser.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model.generate(SUPPORT, INDEX, steps=4, guidance_scale=2.0, guidance_interval=(5, 15))
    assert GaussianDiffusion(model.config.diffusion).respaced(4).timesteps.tolist() == [0, 6, 13, 19]
    assert rows == [2, 4, 4, 2]
