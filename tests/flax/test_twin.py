"""The twin computes what the torch model computes, and trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from lightning_vfs import CheckpointError
from lightning_vfs.core import ConfigError
from lightning_vfs.flax import FlaxVFSDDPM
from lightning_vfs.interop.jax_parameters import to_jax_params
from tests.flax.compilation import quick_jit

# Together they have every choice that the networks branch on, at least once.
MODELS: dict[str, dict] = {
    "default": {"encoder": {"depth": 2}, "denoiser": {"depth": 2}},
    "drop_zero_token_patches_head": {
        "sets": {"held_out": "drop"},
        "encoder": {"time_token": "zero", "pool": "patches", "head_hidden_dim": 12},
        "diffusion": {"variance": "fixed_large", "loss": "mse"},
    },
    "not_held_out_sum_projection": {
        "sets": {"held_out": "none"},
        "encoder": {"pool": "sum", "projection_dim": 12, "mlp_ratio": 1.5},
        "diffusion": {"prediction": "x_0"},
    },
    "timestep_concat_scaled_padded_v": {
        "encoder": {"time_token": "timestep", "pool": "mean"},
        "denoiser": {"film": "concat", "normalize_condition": True, "pad": 2, "mlp_ratio": 2.5},
        "diffusion": {"prediction": "v", "rescale_timesteps": True},
    },
    "per_slot_variational_projection_learned_range": {
        "encoder": {
            "tokenizer": "per_slot_mean",
            "pool": "none",
            "context": "variational",
            "kl_weight": 0.3,
            "projection_dim": 12,
            "projection_hidden_dim": 20,
        },
        "diffusion": {"variance": "learned_range"},
    },
    "per_image_grey_bound": {
        "sets": {"channels": 1},
        "encoder": {"tokenizer": "per_image_mean", "pool": "patches"},
        "diffusion": {"variance": "learned_range", "loss": "rescaled_kl"},
    },
}


def training_batch(config, b: int = 2, n: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = (config.sets.channels, config.sets.image_size, config.sets.image_size)
    batch = {
        "x_set": torch.rand(b, n, *image, generator=generator) * 2 - 1,
        # At t = 0 the bound is the logarithm of a small difference, whose gradient float32 gives to three digits.
        "t": torch.tensor([1 if "kl" in config.diffusion.loss else 0, 13]),
        "noise": torch.randn(b, n, *image, generator=generator),
    }
    if config.encoder.context == "variational":
        batch["latent_noise"] = torch.randn(b * n, config.encoder.dim, generator=generator)
    return batch


@pytest.mark.parametrize("name", MODELS)
def test_context_denoiser_loss_and_gradients_are_those_of_torch(tiny_model, name: str) -> None:
    model = tiny_model(3, **MODELS[name])
    twin, batch = FlaxVFSDDPM.from_torch(model), training_batch(model.config)
    x_t, t_image = batch["noise"].flatten(0, 1), batch["t"].repeat_interleave(3)

    def outputs(params: dict, batch: dict) -> dict:
        networks, x_t = twin.networks, batch["noise"].reshape(6, *batch["noise"].shape[2:])
        context = networks.context(params, batch["x_set"], batch["t"])
        given = networks.posterior(params, context)[0] if networks.is_variational else context
        loss, gradients = jax.value_and_grad(twin.loss)(params, **batch)
        denoised = networks.denoise(params, x_t, jnp.repeat(batch["t"], 3), given)
        return {"context": context, "denoised": denoised, "loss": loss, "gradients": gradients}

    found = quick_jit(outputs)(twin.params, {name: value.numpy() for name, value in batch.items()})

    context = model.context(batch["x_set"], batch["t"])
    given = context if model.posterior is None else model.posterior(context)[0]
    denoised, loss = model.denoiser(x_t, t_image, given), model.loss(**batch)
    loss.backward()
    np.testing.assert_allclose(found["context"], context.detach(), atol=2e-5, rtol=0)
    np.testing.assert_allclose(found["denoised"], denoised.detach(), atol=2e-5, rtol=0)
    np.testing.assert_allclose(found["loss"], loss.detach(), atol=2e-5, rtol=2e-6)
    of_torch = dict(model.named_parameters())
    gradients = {
        name: (of_torch[name].grad if name in of_torch else torch.zeros_like(value)).numpy()
        for name, value in model.state_dict().items()
    }
    expected, leaves = to_jax_params(gradients, model.config), flatten_dict(found["gradients"], sep="/")
    assert leaves.keys() == expected.keys()
    scale = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        np.testing.assert_allclose(leaves[path], leaf, atol=2e-5 * max(scale, 1), rtol=2e-4, err_msg=path)


def test_dropout_is_where_torch_has_it(tiny_model) -> None:
    encoder = {"dropout": 0.25, "head_hidden_dim": 12, "projection_dim": 12}
    twin = FlaxVFSDDPM.from_torch(tiny_model(3, encoder=encoder, denoiser={"dropout": 0.5}))
    batch = {name: value.numpy() for name, value in training_batch(twin.config).items()}
    seen = []

    def record(call, args, kwargs, context):
        if isinstance(drop := context.module, nn.Dropout):
            seen.append((drop.path[:-1], drop.rate, args[0].shape[1:]))
            assert not (args[1] if drop.deterministic is None else drop.deterministic), drop.path
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda params: twin.loss(params, **batch, dropout_rng=jax.random.key(0)), twin.params)
    layer = ("transformer", "layer_0")
    assert sorted(seen) == sorted(
        [
            ((), 0.25, (17, 16)),  # embeddings
            ((*layer, "LSA_0"), 0.25, (2, 17, 17)),  # attention probabilities
            ((*layer, "LSA_0"), 0.25, (17, 16)),
            ((*layer, "FeedForward_0"), 0.25, (17, 64)),
            ((*layer, "FeedForward_0"), 0.25, (17, 16)),
            (("mlp_head_ff",), 0.25, (12,)),
            (("mlp_head_ff",), 0.25, (16,)),
            ((), 0.25, (12,)),  # projection
            ((), 0.25, (12,)),
            (("DiTBlock_0",), 0.5, (4, 16)),
            (("DiTBlock_0", "MlpBlock_0"), 0.5, (4, 64)),
        ]
    )


def test_nothing_is_dropped_without_a_key_and_something_else_with_another(tiny_model) -> None:
    model = tiny_model(3, encoder={"dropout": 0.5}, denoiser={"dropout": 0.5})
    twin = FlaxVFSDDPM.from_torch(model)
    batch = {name: value.numpy() for name, value in training_batch(model.config).items()}
    loss = quick_jit(lambda rng=None: twin.loss(twin.params, **batch, dropout_rng=rng))
    without, first, again, other = loss(), *(loss(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_allclose(without, model.loss(**training_batch(model.config)).detach(), atol=2e-5)
    assert first == again and len({float(without), float(first), float(other)}) == 3


def test_optax_trains_it_and_leaves_the_positions_alone(tiny_model) -> None:
    twin = FlaxVFSDDPM.from_torch(tiny_model(3))
    batch = {name: value.numpy() for name, value in training_batch(twin.config).items()}
    optimizer = optax.adam(3e-3)

    @quick_jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(twin.loss)(params, **batch)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = twin.params, jax.jit(optimizer.init)(twin.params), []
    for _ in range(30):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    trained = FlaxVFSDDPM(twin.config, params)
    positions = (model.params["dit"]["params"]["pos_embed"] for model in (twin, trained))
    np.testing.assert_array_equal(*positions)


def test_a_wrong_tree_is_refused_with_every_leaf_named(tiny_model) -> None:
    twin = FlaxVFSDDPM.from_torch(tiny_model())
    leaves = flatten_dict(twin.params, sep="/")
    del leaves["encoder/params/cls_token"], leaves["dit/params/Dense_0/bias"]
    leaves["posterior/params/Dense_0/bias"] = np.zeros(16)
    leaves["dit/params/PatchEmbed_0/Conv_0/bias"] = np.zeros(7)
    with pytest.raises(CheckpointError) as error:
        FlaxVFSDDPM(twin.config, unflatten_dict(leaves, sep="/"))
    assert "missing: encoder/params/cls_token" in str(error.value)
    assert "missing: dit/params/Dense_0/bias" in str(error.value)
    assert "extra: posterior/params/Dense_0/bias" in str(error.value)
    assert "misshaped: dit/params/PatchEmbed_0/Conv_0/bias" in str(error.value)
    assert len(str(error.value).splitlines()) == 5


def test_the_parameters_are_copies_in_jax(tiny_model) -> None:
    twin = FlaxVFSDDPM.from_torch(tiny_model())
    host = jax.tree.map(lambda leaf: np.array(leaf), twin.params)
    copy = FlaxVFSDDPM(twin.config, host)
    host["encoder"]["params"]["cls_token"][:] = 7
    cls_token = copy.params["encoder"]["params"]["cls_token"]
    assert isinstance(cls_token, jax.Array) and not (cls_token == 7).any()


def test_what_a_model_lacks_is_said(tiny_model) -> None:
    twin = FlaxVFSDDPM.from_torch(tiny_model(3))
    with pytest.raises(ConfigError, match="deterministic.*posterior"):
        twin.posterior(jnp.zeros((2, 16)))
    sees_t = FlaxVFSDDPM.from_torch(tiny_model(3, encoder={"time_token": "timestep"}))
    with pytest.raises(ValueError, match="needs the timestep"):
        jax.eval_shape(sees_t.context, jnp.zeros((2, 3, 3, 8, 8)))
    with pytest.raises(ValueError, match="needs the timestep"):
        sees_t.encode(jnp.zeros((2, 3, 8, 8)))
    variational = FlaxVFSDDPM.from_torch(tiny_model(3, encoder={"context": "variational"}))
    batch = {name: value.numpy() for name, value in training_batch(twin.config).items()}
    with pytest.raises(ValueError, match="latent_noise"):
        jax.eval_shape(lambda params: variational.loss(params, **batch), variational.params)
