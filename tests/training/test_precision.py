"""Every precision of Lightning's trainer: it trains, evaluates, samples and resumes in any other, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from lightning_vfs import VFSDDPM, EMACallback, FIDCallback, VFSConfig
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.modules import OptimizerConfig
from lightning_vfs.training.device import memory_format
from tests.callbacks.conftest import TINY, Patterns, TinyExtractor
from tests.modules.family import Case, with_others

TRAINED = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
CLIPPING: dict[str, dict[str, Any]] = {
    "norm": {"gradient_clip_val": 0.1},
    "value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "none": {},
}
# What a learned variance, dropout, a null context and UNets add; the family below has the rest.
CONFIG = {
    "sets": {"set_size": 4, "image_size": 8, "channels": 1},
    "encoder": {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "patch_size": 4, "pool": "patches", "dropout": 0.1}
    | {"context_dropout": 0.2},
    "denoiser": {"dim": 16, "depth": 2, "heads": 2, "patch_size": 4, "conditioning": "lag", "dropout": 0.1},
    "diffusion": {"timesteps": 20, "prediction": "x_0"},
}
UNET = CONFIG | {
    "encoder": {"architecture": "unet", "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "dim": 16}
    | {"pool": "mean"},
    "denoiser": {"architecture": "unet", "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1}
    | {"attention_resolutions": [4], "heads": 2},
    "diffusion": {"timesteps": 20, "variance": "learned_range", "loss": "rescaled_mse"},
}


def model_of(config: dict[str, Any] = CONFIG, **options: Any) -> VFSDDPM:
    pl.seed_everything(0)
    settings = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=100)
    return VFSDDPM(VFSConfig.from_dict(config), settings, **options)


def trainer_of(precision: str, steps: int, *callbacks: Callback, **options: Any) -> pl.Trainer:
    if precision == "16-mixed":
        # By its name Lightning would take bf16-mixed in its place on a CPU.
        options["plugins"] = [MixedPrecision("16-mixed", "cpu")]
    return pl.Trainer(
        **{
            "accelerator": "cpu", "precision": None if "plugins" in options else precision, "max_steps": steps,
            "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
            "num_sanity_val_steps": 0, "use_distributed_sampler": False, "callbacks": [EMACallback(0.5), *callbacks],
        } | options
    )  # fmt: skip


def moved(model: VFSDDPM, config: dict[str, Any] = CONFIG) -> float:
    """Largest change of a parameter since the start."""
    before = model_of(config).state_dict()
    return max(float((value.float() - before[name]).abs().max()) for name, value in model.state_dict().items())


@pytest.fixture
def evaluation(tmp_path: Path, tiny: str) -> FIDCallback:
    return FIDCallback(
        every_n_epochs=None, feature_extractor=tiny, num_images=8, few_shot_way=2, steps=2, vlb_images=2, vlb_steps=2,
        record=tmp_path / "fid.json",
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:--trainer.precision bf16-true keeps the weights")
@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("precision", TRAINED)
def test_it_trains_evaluates_and_samples(precision: str, clipping: str, evaluation: FIDCallback) -> None:
    model = model_of(checkpoint_activations=clipping == "value")
    trainer = trainer_of(precision, 3, evaluation, accumulate_grad_batches=2, **CLIPPING[clipping])
    trainer.fit(model, datamodule=Patterns(sets_per_epoch=24))
    assert moved(model) > 1e-4
    assert trainer.callback_metrics["val/loss"].isfinite()
    (figures,) = trainer.test(model, datamodule=Patterns(), verbose=False)
    assert all(torch.tensor(value).isfinite() for value in figures.values())
    images = model.sample(Patterns().split("test").float(torch.arange(3).numpy()), num_images=2, steps=2)
    assert images.dtype == (torch.float32 if precision != "64-true" else images.dtype) and images.isfinite().all()


def test_a_precision_that_cannot_train_is_refused_before_the_first_step() -> None:
    trainer = trainer_of("16-true", 1)
    with pytest.raises(ConfigError, match=r"16-true .* divide by zero. Train in 16-mixed or bf16-mixed"):
        trainer.fit(model_of(), datamodule=Patterns())
    assert trainer.global_step == 0


def test_half_precision_evaluates(evaluation: FIDCallback) -> None:
    (figures,) = trainer_of("16-true", 1, evaluation).test(model_of(), datamodule=Patterns(), verbose=False)
    assert all(torch.tensor(value).isfinite() for value in figures.values())


def test_weights_in_bfloat16_are_warned_of_and_averaged_in_float32(tmp_path: Path) -> None:
    trainer, model = trainer_of("bf16-true", 2), model_of()
    with pytest.warns(UserWarning, match="bf16-mixed is about as fast"):
        trainer.fit(model, datamodule=Patterns())
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    name = "denoiser.final.proj.weight"
    assert saved["state_dict"][name].dtype == torch.float32
    assert saved["current_model_state"][name].dtype == torch.bfloat16


PAIRS = [(before, after) for before in TRAINED for after in TRAINED]


@pytest.mark.filterwarnings("ignore:--trainer.precision bf16-true keeps the weights")
@pytest.mark.parametrize(
    ("config", "pairs"),
    [(CONFIG, PAIRS[4::4]), (UNET, PAIRS[1::6]), pytest.param(CONFIG, PAIRS, marks=pytest.mark.slow)],
    ids=["transformer", "unet", "all"],
)
def test_it_resumes_in_any_other(config: dict[str, Any], pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    """Also the optimizer's flags and the gradient scaler, which belong to the run and not to the checkpoint."""
    short = CLIPPING["norm"] | {"limit_val_batches": 0}
    for precision in TRAINED:
        trainer = trainer_of(precision, 1, **short)
        trainer.fit(model_of(config), datamodule=Patterns())
        trainer.save_checkpoint(tmp_path / f"{precision}.ckpt")
        model = VFSDDPM.load_from_checkpoint(tmp_path / f"{precision}.ckpt")
        assert {value.dtype for value in model.parameters()} == {torch.float32}
    for before, after in pairs:
        model, trainer = model_of(config, skip_nonfinite=True), trainer_of(after, 2, **short)
        trainer.fit(model, datamodule=Patterns(), ckpt_path=tmp_path / f"{before}.ckpt")
        assert trainer.global_step == 2 and trainer.callback_metrics["train/loss"].isfinite()
        assert all(group["fused"] for group in trainer.optimizers[0].param_groups)


def test_a_resumed_run_in_float64_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Lightning converts a model after it has loaded it, which rounded the weights to float32."""
    straight, resumed = model_of(), model_of()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer_of("64-true", 4, keep, enable_checkpointing=True).fit(straight, datamodule=Patterns())
    trainer_of("64-true", 4).fit(resumed, datamodule=Patterns(), ckpt_path=tmp_path / "step=2.ckpt")
    assert all(torch.equal(value, straight.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_an_optimizer_whose_state_is_not_all_tensors_is_resumed(tmp_path: Path) -> None:
    class ByNewton(VFSDDPM):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters(), lr=1e-3, max_iter=2)

    for steps, path in ((1, None), (2, tmp_path / "last.ckpt")):
        pl.seed_everything(0)
        trainer = trainer_of("32-true", steps)
        trainer.fit(ByNewton(VFSConfig.from_dict(CONFIG)), datamodule=Patterns(), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert trainer.global_step == steps


def test_flags_of_the_optimizer_that_a_checkpoint_brings_do_not_count(tmp_path: Path) -> None:
    """Runs in 16-mixed used to write `fused: False`."""
    trainer = trainer_of("32-true", 2)
    trainer.fit(model_of(), datamodule=Patterns())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for group in saved["optimizer_states"][0]["param_groups"]:
        group |= {"fused": False, "foreach": True}
    torch.save(saved, tmp_path / "last.ckpt")
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        trainer = trainer_of(precision, 3)
        trainer.fit(model_of(), datamodule=Patterns(), ckpt_path=tmp_path / "last.ckpt")
        assert all(group["fused"] and not group["foreach"] for group in trainer.optimizers[0].param_groups)


class Clipped(VFSDDPM):
    """Keeps the gradients of its last step, as they were and as they were clipped."""

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.before = [parameter.grad.clone() for parameter in self.parameters()]
        super().configure_gradient_clipping(*args, **kwargs)
        self.after = [parameter.grad.clone() for parameter in self.parameters()]


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_as_torch_clips_them(precision: str, clipping: str) -> None:
    pl.seed_everything(0)
    model = Clipped(VFSConfig.from_dict(CONFIG))
    trainer = trainer_of(precision, 1, **CLIPPING[clipping])
    trainer.fit(model, datamodule=Patterns())
    expected = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in model.before]
    for parameter, gradient in zip(expected, model.before, strict=True):
        parameter.grad = gradient
    norm = clip_grad_norm_(expected, CLIPPING["norm"]["gradient_clip_val"] if clipping == "norm" else torch.inf)
    if clipping == "value":
        clip_grad_value_(expected, CLIPPING["value"]["gradient_clip_val"])
    assert 0.2 < norm < 20, "unscaled, and large enough to be clipped"
    torch.testing.assert_close(trainer.callback_metrics["train/grad_norm"], norm)
    for gradient, parameter in zip(model.after, expected, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.filterwarnings("ignore:The loss of optimizer step 2")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_loss_that_is_not_finite_changes_no_weight_with_a_scaler_either(precision: str) -> None:
    class Overflowing(VFSDDPM):
        """Its second loss is infinite, its gradients are finite."""

        def batch_loss(self, batch: Any, batch_idx: int = 0) -> torch.Tensor:
            return super().batch_loss(batch, batch_idx) + (torch.inf if batch_idx == 1 else 0)

    weights = []
    for steps in (1, 2):
        pl.seed_everything(0)
        settings = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=100)
        model = Overflowing(VFSConfig.from_dict(CONFIG), settings, skip_nonfinite=True)
        trainer_of(precision, steps, callbacks=[]).fit(model, datamodule=Patterns())
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_unets_train_alike_in_both_memory_formats_and_resume_in_the_other(tmp_path: Path) -> None:
    """In float64, since Adam makes whole steps, here of 1e-3, of gradients that are nothing but rounding."""

    def fit(steps: int, channels_last: bool, ckpt_path: Path | None = None) -> tuple[VFSDDPM, pl.Trainer]:
        model, trainer = model_of(UNET, channels_last=channels_last), trainer_of("64-true", steps)
        trainer.fit(model, datamodule=Patterns(), ckpt_path=ckpt_path)
        assert memory_format(model) == ("channels_last" if channels_last else "contiguous")
        for parameter, state in trainer.optimizers[0].state.items():
            assert state["exp_avg"].stride() == parameter.stride()
        return model, trainer

    resumed = []
    for before in (False, True):
        model, trainer = fit(2, before)
        trainer.save_checkpoint(tmp_path / f"{before}.ckpt")
        resumed += [fit(4, after, tmp_path / f"{before}.ckpt")[0] for after in (False, True)]
    for name, expected in resumed[0].named_parameters():
        for other in resumed[1:]:
            torch.testing.assert_close(other.get_parameter(name), expected, atol=1e-6, rtol=0, msg=name)
    model.save_pretrained(tmp_path / "pretrained")
    loaded = VFSDDPM.from_pretrained(tmp_path / "pretrained")
    assert all(torch.equal(model.state_dict()[name].float(), value) for name, value in loaded.state_dict().items())


def test_the_precision_of_products_is_an_option() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        trainer_of("32-true", 1).fit(model_of(), datamodule=Patterns())
        assert torch.get_float32_matmul_precision() == before
        trainer_of("32-true", 1).fit(model_of(float32_matmul_precision="medium"), datamodule=Patterns())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(ConfigError, match="float32_matmul_precision is 'low'; allowed: 'highest', 'high', 'medium'"):
        model_of(float32_matmul_precision="low")


TYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64, "16-true": torch.float16}


@pytest.mark.filterwarnings("ignore:--trainer.precision bf16-true keeps the weights")
@pytest.mark.parametrize(("case", "precision"), with_others(list(TYPES)), ids=str)
def test_every_row_of_the_family_computes_in_every_precision(case: Case, precision: str, autoencoder: Path) -> None:
    model, dtype = case.model(autoencoder), TYPES[precision]
    trainer = trainer_of(precision, 1)
    plugin = trainer.precision_plugin
    model = plugin.convert_module(model)
    with plugin.train_step_context():
        loss = model.batch_loss(plugin.convert_input(case.batch))
    loss.backward()
    assert loss.dtype == torch.promote_types(torch.float32, dtype) and loss.isfinite()
    assert all(value.grad is None or value.grad.dtype == dtype for value in model.parameters())
    with plugin.val_step_context():
        how = {"steps": 2, "sampler": case.row["sampler"], "guidance_scale": case.guidance_scale}
        images = model.generate(index=torch.arange(2), **case.condition(), **how)
    assert images.isfinite().all() and images.dtype in (torch.float32, torch.float64)


@pytest.fixture
def tiny() -> str:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    if TINY not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(TINY, TinyExtractor)
    return TINY
