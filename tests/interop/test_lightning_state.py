"""Runs of the JAX system go on in Lightning, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lightning_vfs import VFSDDPM, EMACallback
from lightning_vfs.interop.jax import read_jax, write_jax
from lightning_vfs.interop.lightning_state import read_lightning, write_lightning
from lightning_vfs.training.optimizer import OptimizerConfig, build_adamw
from lightning_vfs.training.state import TrainingState

pytestmark = pytest.mark.numeric


@pytest.fixture
def state(orbax_folder: Callable[..., Path]) -> TrainingState:
    """A run of the JAX system after 7 steps."""
    return read_jax(orbax_folder(name="head_variational", replicas=1))


def assert_same(one: TrainingState, other: TrainingState) -> None:
    assert one.config == other.config and one.step == other.step == 7
    pairs = [(one.weights, other.weights), (one.averaged, other.averaged)]
    pairs += list(zip(one.moments, other.moments, strict=True))
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())


def test_everything_comes_along_in_both_directions(state: TrainingState, tmp_path: Path) -> None:
    write_lightning(state, tmp_path / "run.ckpt")
    in_lightning = read_lightning(tmp_path / "run.ckpt")
    # A buffer has no moments in torch, and positions are one here.
    for moment in (*state.moments, *in_lightning.moments):
        moment["denoiser.pos_embed"][:] = 0
    assert_same(in_lightning, state)
    write_jax(in_lightning, tmp_path / "orbax")
    assert_same(read_jax(tmp_path / "orbax"), state)


def test_the_checkpoint_holds_averaged_weights_as_a_runs_does(state: TrainingState, tmp_path: Path) -> None:
    write_lightning(state, tmp_path / "run.ckpt")
    model = VFSDDPM.load_from_checkpoint(tmp_path / "run.ckpt")
    assert all(np.array_equal(value.numpy(), state.averaged[name]) for name, value in model.state_dict().items())


def test_the_next_step_is_the_one_that_optax_takes(state: TrainingState, tmp_path: Path) -> None:
    optax = pytest.importorskip("optax", reason="install the extra `jax`")
    write_lightning(state, tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    model = VFSDDPM(state.config)
    model.load_state_dict(checkpoint["current_model_state"])
    optimizer = build_adamw(model, OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.999)), fused=False)
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    for group in optimizer.param_groups:
        group |= {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0}
    rng = np.random.default_rng(0)
    gradients = {name: rng.normal(size=p.shape).astype(np.float32) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.from_numpy(gradients[name])
    optimizer.step()

    trained = list(gradients)
    adamw = optax.adamw(1e-3, weight_decay=0.0)
    moments = [{name: moment[name] for name in trained} for moment in state.moments]
    before = optax.ScaleByAdamState(count=np.int32(7), mu=moments[0], nu=moments[1])
    fresh = adamw.init(moments[0])
    updates, _ = adamw.update(gradients, (before, *fresh[1:]), {name: state.weights[name] for name in trained})
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach(), state.weights[name] + updates[name], atol=1e-6, rtol=1e-6)


def test_fit_goes_on_from_the_step_with_the_models_own_settings(state: TrainingState, tmp_path: Path) -> None:
    write_lightning(state, tmp_path / "run.ckpt")
    settings = OptimizerConfig(learning_rate=1e-4, warmup_steps=0, decay_steps=20)
    model = VFSDDPM(state.config, settings)
    sets = state.config.sets
    images = torch.randn(4, sets.set_size, sets.channels, sets.image_size, sets.image_size).clamp(-1, 1)
    rates = []

    class Watch(EMACallback):
        def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    average = Watch(decay=0.9, warmup=False)
    trainer = Trainer(
        accelerator="cpu", max_steps=9, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[average],
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(images, batch_size=2), ckpt_path=tmp_path / "run.ckpt")
    assert trainer.global_step == 9
    assert rates == pytest.approx([1e-4 * 0.5 * (1 + np.cos(np.pi * step / 20)) for step in (7, 8)])
    assert average.updates == 9
    # At its end a run takes the averaged weights: two steps by 0.9 towards raw ones, which moved by the rate at most.
    name = "denoiser.blocks.0.mlp.fc1.weight"
    np.testing.assert_allclose(
        model.state_dict()[name].numpy(), 0.81 * state.averaged[name] + 0.19 * state.weights[name], atol=1e-4
    )
