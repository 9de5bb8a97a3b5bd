"""Timesteps drawn by their loss, and class-conditional training, through Lightning's trainer."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vfs import VFSDDPM
from lightning_vfs.core.errors import ClassMismatchError, ConfigError
from lightning_vfs.core.timestep_density import timestep_probabilities
from lightning_vfs.data import FolderSets
from lightning_vfs.modules import OptimizerConfig
from lightning_vfs.modules.noise import TIMESTEP, indexed_uniform
from lightning_vfs.training.timestep_sampling import TimestepDensity
from tests.conftest import tiny_config
from tests.modules.sampler_ranks import BATCHES, TIMESTEPS, batch_of, model_of
from tests.ranks import run_ranks

BY_LOSS = {"timesteps": TIMESTEPS, "timestep_sampling": "loss_second_moment"}


def trainer_of(folder: Path, **options) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        **{"max_epochs": -1, **options},
    )  # fmt: skip


def data_of(folder: Path, **options) -> FolderSets:
    return FolderSets(
        str(folder), image_size=8, batch_size=2, sets_per_epoch=8, eval_sets=2, split_fractions=(0.5, 0.25, 0.25),
        **options,
    )  # fmt: skip


# -- timesteps by their loss -----------------------------------------------------------------------------------------


def test_the_loss_is_weighted_for_the_timesteps_that_were_drawn() -> None:
    model = model_of()
    for step in range(BATCHES):
        model.batch_loss(batch_of(step))
    state = model.timestep_sampler.state_dict()
    again = model_of()
    again.timestep_sampler.load_state_dict(state)
    batch = batch_of(BATCHES)
    numbers = again._random_numbers(2, batch["index"])
    t, weight = again.timestep_sampler.draw(indexed_uniform(batch["index"], 0, TIMESTEP))
    assert not torch.equal(weight, torch.ones_like(weight))  # it has seen enough to prefer some timesteps
    negative = again._negative(batch["images"], batch["index"])
    losses, _ = again.losses(batch["images"], t, negative=negative, **numbers)
    torch.testing.assert_close(model.batch_loss(batch), (weight * losses).mean())
    # Evaluation draws timesteps alike, and teaches the sampler nothing.
    before = {name: value.clone() for name, value in model.timestep_sampler.state_dict().items()}
    model.eval()
    uniform = VFSDDPM(tiny_config(2, diffusion={"timesteps": TIMESTEPS})).eval()
    uniform.load_state_dict(model.state_dict())
    assert torch.equal(model.batch_loss(batch), uniform.batch_loss(batch))
    assert all(torch.equal(before[name], value) for name, value in model.timestep_sampler.state_dict().items())


def test_a_resumed_run_draws_timesteps_as_one_that_was_not_stopped(tmp_path: Path, image_folder: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None = None) -> torch.Tensor:
        pl.seed_everything(0, verbose=False)
        every_24 = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=24, save_top_k=-1)
        model = VFSDDPM(tiny_config(diffusion=BY_LOSS), OptimizerConfig(decay_steps=1000))
        trainer_of(folder, max_steps=48, callbacks=[every_24]).fit(
            model, datamodule=data_of(image_folder), ckpt_path=ckpt_path
        )
        return model.timestep_sampler.state_dict()["losses"]

    straight = run(tmp_path / "a")
    resumed = run(tmp_path / "b", tmp_path / "a" / "step=24.ckpt")
    assert straight.isfinite().all()  # every timestep was seen often enough to be preferred or not
    assert torch.equal(straight, resumed)


def test_two_ranks_learn_the_same_losses_as_one_process(tmp_path: Path) -> None:
    run_ranks(Path(__file__).with_name("sampler_ranks.py"), 2, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name])
    model = model_of()
    for step in range(BATCHES):
        model.batch_loss(batch_of(step))
    for name, value in model.timestep_sampler.state_dict().items():
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-5)


# -- timesteps by a density, and the contrastive term ----------------------------------------------------------------


def test_timesteps_follow_their_density_in_training_alone_and_weigh_the_bound() -> None:
    parts = {"timesteps": 50, "timestep_sampling": "logit_normal", "timestep_mean": 1.0, "variance": "learned_range"}
    model = VFSDDPM(tiny_config(2, diffusion=parts)).train()
    batch = batch_of(0)
    uniform = indexed_uniform(batch["index"], 0, TIMESTEP)
    t, weight = TimestepDensity(timestep_probabilities(model.config.diffusion)).draw(uniform)
    numbers = model._random_numbers(2, batch["index"])
    losses, _ = model.losses(batch["images"], t, bound_weight=weight, **numbers)
    torch.testing.assert_close(model.batch_loss(batch), losses.mean())
    assert not torch.isclose(losses.mean(), model.losses(batch["images"], t, **numbers)[0].mean())
    losses, _ = model.losses(batch["images"], (uniform * 50).long(), **numbers)
    torch.testing.assert_close(model.eval().batch_loss(batch), losses.mean())


def contrastive(**encoder) -> VFSDDPM:
    diffusion = {"schedule": "flow", "prediction": "v", "contrastive_weight": 0.2}
    return noisy(VFSDDPM(tiny_config(2, encoder=encoder, diffusion=diffusion)))


def noisy(model: VFSDDPM) -> VFSDDPM:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def test_the_negative_is_the_set_with_the_next_global_index() -> None:
    model, batch = contrastive(), batch_of(1)
    images, index = batch["images"], batch["index"]
    t = (indexed_uniform(index, 0, TIMESTEP) * 20).long()
    numbers = model._random_numbers(2, index)
    plain, _ = model.losses(images, t, **numbers)
    negative = (images.roll(-1, dims=0), numbers["noise"].roll(-1, dims=0))
    given = []
    model.denoiser.register_forward_hook(lambda module, inputs, output: given.append(output.detach()))
    loss = model.batch_loss(batch)
    away = ((given[-1] - (negative[1] - negative[0]).flatten(0, 1)) ** 2).mean()
    torch.testing.assert_close(loss, plain.mean() - 0.2 * away)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.batch_loss({"images": images[order], "index": index[order]}), loss)
    torch.testing.assert_close(model.eval().batch_loss(batch), plain.mean())


def test_images_without_their_context_are_not_pushed_away() -> None:
    model, batch = contrastive(context_dropout=0.5), batch_of(2)
    numbers = model._random_numbers(2, batch["index"]) | {"dropped": torch.ones(8, 2, dtype=torch.bool)}
    t = torch.full((8,), 3)
    negative = (torch.ones_like(batch["images"]), numbers["noise"])
    without, _ = model.losses(batch["images"], t, **numbers)
    torch.testing.assert_close(model.losses(batch["images"], t, negative=negative, **numbers)[0], without)


def test_a_contrast_needs_conditions() -> None:
    with pytest.raises(ConfigError, match="contrastive_weight is 0.1, but encoder.architecture 'none'"):
        tiny_config(encoder={"architecture": "none"}, diffusion={"contrastive_weight": 0.1})


# -- class-conditional training --------------------------------------------------------------------------------------


def class_conditional(num_classes: int = 6) -> VFSDDPM:
    return VFSDDPM(tiny_config(encoder={"architecture": "class_label", "num_classes": num_classes}))


@pytest.mark.filterwarnings("ignore:test/loss is left out")
def test_a_class_conditional_model_keeps_its_classes_in_the_checkpoint(tmp_path: Path, image_folder: Path) -> None:
    data, model = data_of(image_folder), class_conditional()
    trainer = trainer_of(tmp_path, max_steps=2)
    with pytest.warns(UserWarning, match="val/loss is left out: a class-conditional model"):
        trainer_of(tmp_path, max_epochs=1).fit(model, datamodule=data)
    trainer.fit(model, datamodule=data)
    assert "val/loss" not in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = VFSDDPM.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.class_names == data.split("train").class_names
    trainer_of(tmp_path).test(again, datamodule=data_of(image_folder), verbose=False)
    with pytest.raises(ClassMismatchError, match=r"trained on other classes than the data has: its class \d"):
        trainer_of(tmp_path).test(again, datamodule=data_of(image_folder, split_seed=1), verbose=False)


def test_a_class_conditional_model_says_how_many_classes_the_data_has(tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(ClassMismatchError, match=r"contexts for 5 classes, but the data has 6 .*num_classes 6"):
        trainer_of(tmp_path, max_steps=1).fit(class_conditional(5), datamodule=data_of(image_folder))


def test_a_class_conditional_model_needs_data_with_classes(tmp_path: Path) -> None:
    with pytest.raises(ClassMismatchError, match="takes its classes from a SetDataModule"):
        trainer_of(tmp_path, max_steps=1).fit(
            class_conditional(), torch.utils.data.DataLoader([torch.zeros(6, 3, 8, 8)])
        )
