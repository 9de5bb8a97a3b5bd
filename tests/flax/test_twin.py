"""The twin computes what the torch model computes, and trains."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

import lightning_vfs
from lightning_vfs import VFSDDPM, CheckpointError
from lightning_vfs.core import ConfigError
from lightning_vfs.core.config import LatentConfig
from lightning_vfs.core.contract import TRAINING_ONLY
from lightning_vfs.flax import FlaxVFSDDPM
from lightning_vfs.flax.dit import DiT
from lightning_vfs.flax.model import NOT_IN_JAX
from lightning_vfs.flax.unet import UNet
from lightning_vfs.interop.jax_parameters import from_jax_params, to_jax_params
from tests.conftest import tiny_config
from tests.flax.models import MODELS, MORE_MODELS, UNET, training_batch

LIBRARY = Path(lightning_vfs.__file__).parent


def twin_of(model: VFSDDPM) -> FlaxVFSDDPM:
    """The twin of a torch model; the weights come back to the bit."""
    twin = FlaxVFSDDPM.from_torch(model)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(twin.params, sep="/").items()}
    back, state = from_jax_params(leaves, model.config), model.state_dict()
    assert back.keys() == state.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
        assert value.shape == state[name].shape
    return twin


def loss_in_jax(twin: FlaxVFSDDPM, params: dict, batch: dict) -> tuple[jax.Array, dict]:
    """The loss, and on the way to it the denoiser's context and output."""
    seen = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, DiT | UNet) and context.method_name == "__call__":
            seen.update(context=args[2], output=output)
        return output

    with nn.intercept_methods(record):
        loss = twin.loss(params, **batch)
    return loss, seen


def check_loss(model: VFSDDPM, batch: dict[str, torch.Tensor], found: tuple[jax.Array, dict]) -> torch.Tensor:
    """Compare with the torch model's loss, which is returned, and what is on the way to it."""
    seen = {}
    model.denoiser.register_forward_hook(lambda module, args, output: seen.update(context=args[2], output=output))
    loss = model.loss(**batch)
    np.testing.assert_allclose(found[0], loss.detach(), atol=2e-5, rtol=2e-6)
    assert (found[1]["context"] is None) == (seen["context"] is None) == (model.encoder is None)
    for name, value in seen.items():
        if value is not None:
            np.testing.assert_allclose(found[1][name], value.detach(), atol=2e-5, rtol=0, err_msg=name)
    return loss


@pytest.mark.parametrize("name", MODELS)
def test_context_denoiser_loss_and_gradients_are_those_of_torch(tiny_model, name: str) -> None:
    model = tiny_model(3, **MODELS[name])
    twin, batch = twin_of(model), training_batch(model.config)
    step = jax.jit(jax.value_and_grad(functools.partial(loss_in_jax, twin), has_aux=True))
    found, gradients = step(twin.params, {name: value.numpy() for name, value in batch.items()})
    check_loss(model, batch, found).backward()
    of_torch = dict(model.named_parameters())
    expected = {
        name: (of_torch[name].grad if name in of_torch else torch.zeros_like(value)).numpy()
        for name, value in model.state_dict().items()
    }
    expected, leaves = to_jax_params(expected, model.config), flatten_dict(gradients, sep="/")
    assert leaves.keys() == expected.keys()
    scale = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        np.testing.assert_allclose(leaves[path], leaf, atol=2e-5 * max(scale, 1), rtol=2e-4, err_msg=path)


@pytest.mark.numeric
@pytest.mark.parametrize("name", MORE_MODELS)
def test_context_denoiser_and_loss_are_those_of_torch(tiny_model, name: str) -> None:
    model = tiny_model(3, **MORE_MODELS[name])
    twin, batch = twin_of(model), training_batch(model.config)
    given = {name: value.numpy() for name, value in batch.items()}
    check_loss(model, batch, jax.jit(functools.partial(loss_in_jax, twin))(twin.params, given))


def test_the_parts_can_be_used_alone(tiny_model) -> None:
    model = tiny_model(3, encoder={"architecture": "class_label", "num_classes": 3})
    twin, x_set, x_t = FlaxVFSDDPM.from_torch(model), torch.zeros(2, 3, 3, 8, 8), torch.ones(6, 3, 8, 8)
    label, t = torch.tensor([2, 0]), torch.arange(6)
    expected = model.context(x_set, label=label)
    context = twin.context(x_set.numpy(), label=label.numpy())
    np.testing.assert_array_equal(context, expected.detach())
    output = jax.jit(twin.denoiser)(x_t.numpy(), t.numpy(), context)
    np.testing.assert_allclose(output, model.denoiser(x_t, t, expected).detach(), atol=2e-5, rtol=0)
    discrete = tiny_model(3, encoder={"context": "variational_discrete"})
    logits = FlaxVFSDDPM.from_torch(discrete).posterior(np.ones((2, 16), np.float32))
    np.testing.assert_allclose(logits, discrete.posterior(torch.ones(2, 16)).detach(), atol=2e-5, rtol=0)


def drops(model: VFSDDPM) -> list[tuple]:
    """Path, probability, and shape without the first axis of all that drops out in training."""
    twin, seen = FlaxVFSDDPM.from_torch(model), []
    batch = {name: value.numpy() for name, value in training_batch(twin.config).items()}

    def record(call, args, kwargs, context):
        if isinstance(drop := context.module, nn.Dropout):
            seen.append((drop.path[:-1], drop.rate, args[0].shape[1:]))
            assert not drop.deterministic, drop.path
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda params: twin.loss(params, **batch, dropout_rng=jax.random.key(0)), twin.params)
    return sorted(seen)


def test_dropout_is_where_torch_has_it(tiny_model) -> None:
    encoder = {"dropout": 0.25, "head_hidden_dim": 12, "projection_dim": 12}
    layer, block = ("encoder", "transformer", "layer_0"), ("dit", "DiTBlock_0")
    assert drops(tiny_model(3, encoder=encoder, denoiser={"dropout": 0.5})) == sorted(
        [
            (("encoder",), 0.25, (17, 16)),  # embeddings
            ((*layer, "LSA_0"), 0.25, (2, 17, 17)),  # attention probabilities
            ((*layer, "LSA_0"), 0.25, (17, 16)),
            ((*layer, "FeedForward_0"), 0.25, (17, 64)),
            ((*layer, "FeedForward_0"), 0.25, (17, 16)),
            (("encoder", "mlp_head_ff"), 0.25, (12,)),
            (("encoder", "mlp_head_ff"), 0.25, (16,)),
            (("projection",), 0.25, (12,)),
            (("projection",), 0.25, (12,)),
            (block, 0.5, (4, 16)),
            ((*block, "MlpBlock_0"), 0.5, (4, 64)),
        ]
    )


def test_dropout_of_cross_attention_and_of_the_vit_is_where_torch_has_it(tiny_model) -> None:
    encoder = {"architecture": "vit", "pool": "none", "dropout": 0.25}
    layer, block = ("encoder", "transformer", "layer_0"), ("dit", "DiTBlock_0")
    assert drops(tiny_model(3, encoder=encoder, denoiser={"dropout": 0.5, "conditioning": "lag"})) == sorted(
        [
            (("encoder",), 0.25, (49, 16)),  # embeddings, of the patches of 3 images and the class token
            ((*layer, "EncoderAttention_0"), 0.25, (2, 49, 49)),  # attention probabilities
            ((*layer, "EncoderAttention_0"), 0.25, (49, 16)),
            ((*layer, "FeedForward_0"), 0.25, (49, 64)),
            ((*layer, "FeedForward_0"), 0.25, (49, 16)),
            (block, 0.5, (4, 16)),
            (block, 0.5, (4, 16)),  # cross-attention
            ((*block, "MlpBlock_0"), 0.5, (4, 64)),
        ]
    )


def test_dropout_of_a_unet_is_in_its_residual_blocks_and_its_head(tiny_model) -> None:
    encoder = {**UNET, "pool": "mean", "dropout": 0.25, "head_hidden_dim": 12}
    seen = drops(tiny_model(3, encoder=encoder, denoiser={**UNET, "dropout": 0.5}))
    down = [("down_0", "blocks_0", "res"), ("down_1", "blocks_0", "res"), ("middle_0", "res"), ("middle_1", "res")]
    up = [(f"up_{level}", f"blocks_{block}", "res") for level in range(2) for block in range(2)]
    assert [path for path, *_ in seen if path[0] == "unet"] == [("unet", *path) for path in down + up]
    in_encoder = sorted([*down, ("down_0", "resample"), ("head_mlp",)])
    assert [path for path, *_ in seen if path[0] == "encoder"] == [("encoder", *path) for path in in_encoder]
    assert {(path[0], rate) for path, rate, _ in seen} == {("unet", 0.5), ("encoder", 0.25)}


def test_nothing_is_dropped_without_a_key_and_something_else_with_another(tiny_model) -> None:
    model = tiny_model(3, encoder={"dropout": 0.5}, denoiser={"dropout": 0.5})
    twin = FlaxVFSDDPM.from_torch(model)
    batch = {name: value.numpy() for name, value in training_batch(model.config).items()}
    loss = jax.jit(lambda rng=None: twin.loss(twin.params, **batch, dropout_rng=rng))
    without, first, again, other = loss(), *(loss(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_allclose(without, model.loss(**training_batch(model.config)).detach(), atol=2e-5)
    assert first == again and len({float(without), float(first), float(other)}) == 3


def test_optax_trains_it_and_leaves_the_positions_alone(tiny_model) -> None:
    twin = FlaxVFSDDPM.from_torch(tiny_model(3))
    batch = {name: value.numpy() for name, value in training_batch(twin.config).items()}
    optimizer = optax.adam(3e-3)

    @jax.jit
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
    label = FlaxVFSDDPM.from_torch(tiny_model(3, encoder={"architecture": "class_label", "num_classes": 3}))
    with pytest.raises(ValueError, match="give it `label`"):
        jax.eval_shape(lambda params: label.loss(params, **batch), label.params)
    for model in (twin, label):
        with pytest.raises(ValueError, match="no null context: leave `dropped` out"):
            model.loss(model.params, **batch, dropped=np.ones((2, 3), bool), label=np.array([2, 0]))


# Models that together have every option that the twin runs.
EVERY_OPTION: list[dict] = [
    {
        "encoder": {
            "tokenizer": "per_slot_mean",
            "pool": "patches",
            "time_token": "timestep",
            "projection_dim": 12,
            "context": "variational_discrete",
            "context_dropout": 0.1,
        },
        "denoiser": {"conditioning": "lag"},
    },
    {"encoder": {**UNET, "pool": "mean"}, "denoiser": UNET},
    {"encoder": {"architecture": "class_label", "num_classes": 3}},
]


def test_every_option_is_run_or_of_training_alone_or_refused(tiny_model, monkeypatch) -> None:
    twins, read = [FlaxVFSDDPM.from_torch(tiny_model(3, **parts)) for parts in EVERY_OPTION], set()
    options = {f"{part}.{name}" for part, values in twins[0].config.to_dict().items() for name in values}

    def recorded(part: str):
        def getattribute(self, name: str):
            # The library's own code, and no comparison or hash of configurations.
            if Path(sys._getframe(1).f_code.co_filename).is_relative_to(LIBRARY):
                read.add(f"{part}.{name}")
            return object.__getattribute__(self, name)

        return getattribute

    for part in (parts := twins[0].config).to_dict():
        monkeypatch.setattr(type(getattr(parts, part)), "__getattribute__", recorded(part))
    for twin in twins:
        batch = {name: value.numpy() for name, value in training_batch(twin.config).items()}
        jax.eval_shape(functools.partial(twin.loss, **batch), twin.params)
        given = {"label": 1} if "label" in batch else {"support": batch["x_set"][0, :2]}
        jax.eval_shape(functools.partial(twin.sample, **given, num_images=2, steps=2))
    unread = options - read - {*TRAINING_ONLY} - NOT_IN_JAX.keys()
    assert unread == {f"latent.{name}" for name in ("channels", "downsampling", "scale")}  # of the autoencoder


def test_an_encoder_that_is_not_there_is_refused_by_name(tiny_model) -> None:
    with pytest.raises(ConfigError, match=r"encoder.architecture is 'set_tokens', but .*Sample it in torch"):
        FlaxVFSDDPM.from_torch(tiny_model(3, encoder={"architecture": "set_tokens"}))


def test_a_model_of_latents_is_refused_with_the_way_out(tiny_model) -> None:
    latent = LatentConfig(autoencoder="models/kl", downsampling=2)
    config = replace(tiny_config(diffusion={"clip_denoised": False}), latent=latent)
    with pytest.raises(ConfigError, match=r"latent.autoencoder is 'models/kl', but .*Sample it in torch"):
        FlaxVFSDDPM.from_torch(VFSDDPM(config))
