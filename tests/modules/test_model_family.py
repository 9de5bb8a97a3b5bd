"""Every pair of choices of the model family in some row: it trains, samples, is stored, and compiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.core import ConfigError
from tests.conftest import tiny_config
from tests.modules.family import CHOICES, Case, cases, makes_sense
from tests.modules.family_ranks import ROWS
from tests.ranks import run_ranks

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_learns_samples_and_is_stored(case: Case, autoencoder: Path, tmp_path: Path) -> None:
    model = case.model(autoencoder)
    model.class_names = ("a", "b", "c") if case.row["encoder"] == "class_label" else None
    losses = learn(model, case, steps=30)
    assert max(losses[-2:]) < 0.9 * losses[0]
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    how = {"steps": 3, "sampler": case.row["sampler"], "guidance_scale": case.guidance_scale}
    images = model.generate(index=torch.arange(2), **how, **case.condition())
    assert images.shape == (2, 3, 8, 8)
    assert images.abs().max() <= 1
    assert images.std() > 0
    again = stored_and_loaded(model, tmp_path)
    assert again.config == model.config
    assert again.class_names == model.class_names
    assert torch.equal(again.generate(index=torch.arange(2), **how, **case.condition()), images)
    model.save_pretrained(tmp_path / "pretrained")
    shared = VFSDDPM.from_pretrained(tmp_path / "pretrained")
    assert torch.equal(shared.generate(index=torch.arange(2), **how, **case.condition()), images)


def learn(model: VFSDDPM, case: Case, steps: int) -> list[float]:
    """Losses of steps on one batch, always with the same random numbers, until two are a tenth below the first."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        loss = model.batch_loss(case.batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if max(losses[-2:]) < 0.9 * losses[0]:
            break
    return losses


def stored_and_loaded(model: VFSDDPM, folder: Path) -> VFSDDPM:
    trainer = pl.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, barebones=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "last.ckpt")
    return VFSDDPM.load_from_checkpoint(folder / "last.ckpt")


@pytest.mark.parametrize("rows", ["every choice", pytest.param("all", marks=pytest.mark.slow)])
def test_no_row_has_unused_parameters_under_ddp(rows: str, autoencoder: Path, tmp_path: Path) -> None:
    """DDP without `find_unused_parameters`, as Lightning's strategy `ddp`, stops at the first parameter without use."""
    (tmp_path / "autoencoder").symlink_to(autoencoder)
    run_ranks(Path(__file__).with_name("family_ranks.py"), 2, tmp_path, ROWS=rows)
    told = [(tmp_path / f"rank{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert len(told[0]) == len(ROWS[rows]())
    assert told[0] == told[1]  # the same weights on both ranks after two steps


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_compiles_without_graph_breaks(case: Case, autoencoder: Path) -> None:
    torch._dynamo.reset()
    model = case.model(autoencoder).train()
    eager = model.batch_loss(case.batch)
    model.__dict__["_compiled_losses"] = torch.compile(model.losses, fullgraph=True, backend="aot_eager")
    model.hparams["compile"] = True
    compiled = model.batch_loss(case.batch)
    compiled.backward()
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"denoiser": {"conditioning": "lag"}}, "pool 'cls' leaves one vector"),
        (
            {"encoder": {"architecture": "none"}, "denoiser": {"conditioning": "lag"}},
            "'none' makes no tokens to attend to",
        ),
        ({"encoder": {"architecture": "none", "context": "variational"}}, "encodes no set, but context is"),
        ({"encoder": {"architecture": "none", "context_dropout": 0.1}}, "no context to drop"),
        ({"encoder": {"architecture": "class_label"}}, "num_classes is 0"),
        ({"encoder": {"num_classes": 3}}, "to 0 for everything else"),
        (
            {"encoder": {"architecture": "class_label", "num_classes": 3, "time_token": "timestep"}},
            "encodes no set, but time_token",
        ),
        ({"encoder": {"architecture": "unet"}}, "its pool is 'cls'; it can pool by 'mean', 'none'"),
        ({"encoder": {"pool": "mean_patch"}}, "its pool is 'mean_patch'; it can pool by 'cls'"),
        ({"encoder": {"architecture": "vit", "tokenizer": "per_image_mean"}}, "but only 'set_vit' has tokenizer"),
        ({"encoder": {"architecture": "unet", "pool": "mean", "time_token": "zero"}}, "may be 'none' or 'timestep'"),
        ({"encoder": {"context": "variational_discrete", "codebook_groups": 3}}, "dim is 16, but codebook_groups is 3"),
        ({"encoder": {"context_dropout": 1.0}}, "context_dropout is 1.0"),
        ({"denoiser": {"context_tokens": 2}}, "has no cross-attention"),
        (
            {"encoder": {"pool": "patches"}, "denoiser": {"conditioning": "lag", "context_tokens": 3}},
            r"makes 16 tokens: it must divide them \(1, 2, 4, 8, 16\)",
        ),
        (
            {"encoder": {"pool": "patches"}, "denoiser": {"conditioning": "lag", "cross_attention_layers": [1]}},
            "numbers 0 to 0",
        ),
        (
            {"encoder": {"pool": "patches"}, "denoiser": {"conditioning": "lag", "context_tokens": 1}},
            "of 16 tokens that the encoder makes 1 is left",
        ),
        ({"denoiser": {"architecture": "unet", "pad": 2}}, "pad is 2, but only a 'dit' has this option"),
        ({"denoiser": {"architecture": "unet", "channels": 9}}, "must be a multiple of it"),
        ({"denoiser": {"architecture": "unet", "channel_mult": (1,) * 5}}, "5 levels, but images are 8 x 8"),
        ({"denoiser": {"architecture": "unet", "attention_resolutions": (16,)}}, "has 16, but the feature maps are"),
        ({"diffusion": {"min_snr_gamma": 5.0, "loss": "kl"}}, "no squared error to weight"),
        ({"diffusion": {"min_snr_gamma": -1.0}}, "min_snr_gamma is -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(parts: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny_config(**parts)


def test_latents_that_make_no_sense_are_refused_with_the_reason() -> None:
    values = tiny_config().to_dict()
    with pytest.raises(ConfigError, match="not confined to"):
        VFSConfig.from_dict({**values, "latent": {"autoencoder": "folder"}})
    values["diffusion"]["clip_denoised"] = False
    with pytest.raises(ConfigError, match=r"downsampling is 3, but images are 8 x 8: it must divide 8 \(1, 2, 4, 8\)"):
        VFSConfig.from_dict({**values, "latent": {"autoencoder": "folder", "downsampling": 3}})
    with pytest.raises(ConfigError, match="there is no autoencoder"):
        VFSConfig.from_dict({**values, "latent": {"encoder_input": "latents"}})


def test_all_other_combinations_are_allowed(autoencoder: Path) -> None:
    """Each row with every value of each choice in turn: what is refused is what makes no sense, and nothing else."""
    changed = [{**case.row, name: value} for case in CASES for name, values in CHOICES.items() for value in values]
    for row in {tuple(row.values()): row for row in changed}.values():
        if makes_sense(row):
            Case(row).config(autoencoder)
        else:
            with pytest.raises(ConfigError):
                Case(row).config(autoencoder)


def test_a_configuration_survives_plain_values() -> None:
    config = tiny_config(
        encoder={"architecture": "unet", "pool": "none", "channel_mult": (1, 3)},
        denoiser={"conditioning": "lag", "depth": 4, "cross_attention_layers": (0, 2)},
    )
    assert VFSConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["denoiser"]["cross_attention_layers"] == [0, 2]
    assert replace(config).denoiser.attends_to_context(2)
    assert not config.denoiser.attends_to_context(1)
