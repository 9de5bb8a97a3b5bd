"""Muon for the matrices of blocks: against torch's two optimizers apart; resumed, in every precision, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from lightning_vfs import VFSDDPM, EMACallback
from lightning_vfs.commands.convert import convert
from lightning_vfs.core import CheckpointError, ConfigError
from lightning_vfs.modules import OptimizerConfig
from lightning_vfs.training.muon import MuonAdamW, block_matrices
from lightning_vfs.training.optimizer import build_optimizer
from tests.callbacks.conftest import Patterns
from tests.conftest import tiny_config

MUON = OptimizerConfig(name="muon", learning_rate=1e-3, weight_decay=0.1, warmup_steps=0, decay_steps=20)
MODULATION = "denoiser.blocks.0.modulation.weight"
UNET = {"architecture": "unet", "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "heads": 2}


def model_of(optimizer: OptimizerConfig = MUON, **parts: Any) -> VFSDDPM:
    torch.manual_seed(0)
    sets = {"set_size": 4, "image_size": 8, "channels": 1}
    return VFSDDPM(tiny_config(sets=sets, **parts), optimizer)


def trainer_of(steps: int, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu", "max_epochs": -1, "max_steps": steps, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
            "limit_val_batches": 0, "use_distributed_sampler": False, "callbacks": [EMACallback(0.5)],
        } | options
    )  # fmt: skip


def weights(model: VFSDDPM) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_it_takes_the_matrices_of_the_blocks() -> None:
    model = model_of()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(matrix)] for matrix in block_matrices(model)) == sorted(
        [
            *(f"encoder.layers.0.{name}.weight" for name in ("attn.to_qkv", "attn.to_out", "mlp.fc1", "mlp.fc2")),
            *(f"denoiser.blocks.0.{name}.weight" for name in ("attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2")),
            MODULATION,
        ]
    )
    unets = block_matrices(model_of(encoder={**UNET, "pool": "mean"}, denoiser=UNET))
    assert unets and {matrix.ndim for matrix in unets} == {2}
    with pytest.raises(ConfigError, match="these networks have none: set name to 'adamw'"):
        build_optimizer(torch.nn.Linear(2, 2), MUON)


def step_on(optimizer: torch.optim.Optimizer, model: VFSDDPM, seed: int, found_inf: bool | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    if found_inf is not None:
        optimizer.found_inf = torch.tensor(float(found_inf))
        if found_inf:
            for parameter in model.parameters():
                parameter.grad.fill_(torch.nan)
    optimizer.step()


def test_its_steps_are_those_of_torchs_two_optimizers() -> None:
    ours, theirs = model_of(), model_of()
    matrices = block_matrices(theirs)
    others = {id(matrix) for matrix in matrices}
    rest = [(name, p) for name, p in theirs.named_parameters() if id(p) not in others]
    decaying = [p for name, p in rest if p.ndim >= 2 and name.endswith(".weight")]
    plain = [p for name, p in rest if not (p.ndim >= 2 and name.endswith(".weight"))]
    muon = torch.optim.Muon(matrices, 1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.99), fused=True)
    optimizer = build_optimizer(ours, MUON)
    before = weights(ours)
    for seed in range(3):
        step_on(optimizer, ours, seed, found_inf=False if seed else None)
        step_on(muon, theirs, seed)
        adamw.step()
    for name, value in weights(ours).items():
        assert torch.equal(value, theirs.get_parameter(name)), name
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("first", [True, False], ids=["the first step", "a later step"])
def test_a_step_with_found_inf_changes_nothing(first: bool) -> None:
    ours, theirs = model_of(), model_of()
    optimizer, reference = build_optimizer(ours, MUON), build_optimizer(theirs, MUON)
    if not first:
        step_on(optimizer, ours, 0, found_inf=False)
        step_on(reference, theirs, 0, found_inf=False)
    before = weights(ours)
    step_on(optimizer, ours, 1, found_inf=True)
    assert all(torch.equal(value, before[name]) for name, value in weights(ours).items())
    step_on(optimizer, ours, 2, found_inf=False)
    step_on(reference, theirs, 2, found_inf=False)
    assert all(torch.equal(value, theirs.get_parameter(name)) for name, value in weights(ours).items())


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    straight, resumed = model_of(), model_of()
    halfway = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=2, save_top_k=-1)
    callbacks = [EMACallback(0.5), halfway]
    trainer_of(3, callbacks=callbacks, enable_checkpointing=True).fit(straight, datamodule=Patterns())
    trainer = trainer_of(3)
    trainer.fit(resumed, datamodule=Patterns(), ckpt_path=tmp_path / "half.ckpt")
    assert isinstance(trainer.optimizers[0], MuonAdamW)
    assert all(torch.equal(value, resumed.get_parameter(name)) for name, value in weights(straight).items())
    adamw = model_of(OptimizerConfig(warmup_steps=0, decay_steps=20))
    with pytest.raises(CheckpointError, match=r"with the optimizer 'muon', but this run has 'adamw'.*name muon"):
        trainer_of(3).fit(adamw, datamodule=Patterns(), ckpt_path=tmp_path / "half.ckpt")
    for to in ("ckpt", "safetensors"):
        with pytest.raises(
            CheckpointError, match=r"optimizer 'muon', whose state cannot be converted.*--to pretrained"
        ):
            convert(ckpt_path=tmp_path / "half.ckpt", to=to, out=tmp_path / f"converted.{to}")
    convert(ckpt_path=tmp_path / "half.ckpt", out=tmp_path / "pretrained")
    assert VFSDDPM.from_pretrained(tmp_path / "pretrained").config == resumed.config


def test_a_run_resumes_with_its_own_settings(tmp_path: Path) -> None:
    first = trainer_of(1)
    first.fit(model_of(), datamodule=Patterns())
    first.save_checkpoint(tmp_path / "one.ckpt")
    settings = OptimizerConfig(name="muon", learning_rate=5e-4, weight_decay=0.2, momentum=0.9, warmup_steps=0)
    trainer = trainer_of(2)
    trainer.fit(model_of(settings), datamodule=Patterns(), ckpt_path=tmp_path / "one.ckpt")
    groups = trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.2, 0.2, 0.0]
    assert [group["initial_lr"] for group in groups] == [5e-4] * 3
    assert groups[0]["momentum"] == 0.9 and "betas" not in groups[0]


@pytest.mark.filterwarnings("ignore:--trainer.precision bf16-true keeps the weights")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_it_trains_in_every_precision(precision: str) -> None:
    model = model_of()
    before = weights(model)
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":  # by its name Lightning would take bf16-mixed in its place on a CPU
        options = {"plugins": [MixedPrecision("16-mixed", "cpu")]}
    trainer_of(2, gradient_clip_val=1.0, **options).fit(model, datamodule=Patterns())
    for matrix in block_matrices(model):
        assert matrix.isfinite().all()
    assert not torch.equal(model.get_parameter(MODULATION).float(), before[MODULATION])


@pytest.mark.parametrize(
    ("values", "says"),
    [({"name": "sgd"}, "name is 'sgd'; allowed: 'adamw', 'muon'"), ({"momentum": 1.0}, "momentum is 1.0")],
)
def test_what_cannot_be_is_refused(values: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        OptimizerConfig(**values)
