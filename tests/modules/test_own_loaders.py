"""Loaders and loops of the user's own, in place of a SetDataModule."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_vfs import VFSDDPM, EMACallback
from lightning_vfs.data import SetDataModule
from tests.callbacks.conftest import Patterns

UINT8 = torch.randint(0, 256, (8, 6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLOAT = UINT8.float() / 127.5 - 1


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    return pl.Trainer(**({"accelerator": "cpu", "max_epochs": 1, "default_root_dir": folder} | quiet | options))


def loader(images: Tensor) -> DataLoader[Any]:
    return DataLoader(images, batch_size=2)  # type: ignore[arg-type]


def test_uint8_is_scaled_as_pixels(tiny_model: Callable[..., VFSDDPM], tmp_path: Path) -> None:
    losses = []
    for images in (UINT8, FLOAT):
        run, model = trainer(tmp_path), tiny_model()
        run.fit(model, loader(images), loader(images))
        losses.append((run.callback_metrics["train/loss"], run.callback_metrics["val/loss"]))
    assert losses[0] == losses[1]


def test_a_data_modules_bytes_train_as_its_floats(tmp_path: Path) -> None:
    from tests.training.test_precision import model_of

    data: SetDataModule = Patterns()
    floats = [{**batch, "images": batch["images"].float() / 127.5 - 1} for batch in data.train_dataloader()]
    losses = []
    for precision in ("32-true", "64-true"):
        for given in ({"datamodule": Patterns()}, {"train_dataloaders": DataLoader(floats, batch_size=None)},
                      {"train_dataloaders": data.train_dataloader()}):  # fmt: skip
            run = trainer(tmp_path, precision=precision)
            run.fit(model_of(), **given)
            losses.append(run.callback_metrics["train/loss"])
    assert losses[0] == losses[1] == losses[2]
    assert losses[3] == losses[4] == losses[5] != losses[0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (UINT8.float(), r"Images are floats in \[-1, 1\]; the batch has values from 0 to 255"),
        ((UINT8.float() / 255 - 0.45) / 0.225, "the batch has values from -2 to 2.44"),
        (UINT8.long() * 300, "the batch has values from -1 to "),
        (FLOAT.where(FLOAT < 0.99, torch.nan), "values that are not finite"),
    ],
    ids=["0 to 255", "normalized as for ImageNet", "large integers", "nan"],
)
def test_images_of_another_range_are_refused_at_the_first_batch(
    tiny_model: Callable[..., VFSDDPM], tmp_path: Path, images: Tensor, message: str
) -> None:
    run = trainer(tmp_path)
    with pytest.raises(ValueError, match=message):
        run.fit(tiny_model(), loader(images))
    assert run.global_step == 0
    with pytest.raises(ValueError, match=message):
        run.validate(tiny_model(), loader(images), verbose=False)


def test_images_from_0_to_1_are_warned_of(tiny_model: Callable[..., VFSDDPM], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"from 0 to 1, but images are expected in \[-1, 1\]: scale those in \[0, 1\]"):
        trainer(tmp_path).fit(tiny_model(), loader(UINT8.float() / 255))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="All values of the batch")
        trainer(tmp_path).fit(tiny_model(), loader(FLOAT))


def test_several_loaders_are_validated_and_tested(tiny_model: Callable[..., VFSDDPM], tmp_path: Path) -> None:
    run, model = trainer(tmp_path), tiny_model()
    run.fit(model, loader(FLOAT), [loader(FLOAT), loader(FLOAT[:4])])
    assert {f"val/loss/dataloader_idx_{i}" for i in range(2)} <= run.callback_metrics.keys()
    assert len(run.test(model, [loader(FLOAT), loader(FLOAT)], verbose=False)) == 2
    assert len(run.predict(model, [loader(FLOAT[:2]), loader(FLOAT[:2])])) == 2


class Frozen(VFSDDPM):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_validation_has_the_same_numbers_in_every_epoch(tiny_model: Callable[..., VFSDDPM], tmp_path: Path) -> None:
    losses = []

    class Note(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            losses.append(float(trainer.callback_metrics["val/loss"]))

    run = trainer(tmp_path, max_epochs=3, num_sanity_val_steps=0, callbacks=[Note()])
    run.fit(Frozen(tiny_model().config), loader(FLOAT), loader(FLOAT))
    assert len(losses) == 3 and len(set(losses)) == 1


def test_overfitting_takes_the_same_sets_with_other_noise(tmp_path: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Note(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append((batch["images"], batch["index"]))

    data: SetDataModule = Patterns()
    from tests.training.test_precision import model_of

    trainer(tmp_path, overfit_batches=2, max_epochs=3, callbacks=[Note()]).fit(model_of(), datamodule=data)
    for number in range(2):
        images, indices = zip(*seen[number::2], strict=True)
        assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
        assert len({tuple(index.tolist()) for index in indices}) == 3


def test_an_optimizer_of_a_parameter_that_is_no_module_s_is_saved(
    tiny_model: Callable[..., VFSDDPM], tmp_path: Path
) -> None:
    class Own(VFSDDPM):
        def configure_optimizers(self) -> Any:
            self.scale = [nn.Parameter(torch.ones(1))]  # in a list, it is none of the module's
            return torch.optim.AdamW([*self.scale, *self.parameters()], lr=1e-3)

    run = trainer(tmp_path)
    run.fit(Own(tiny_model().config), loader(FLOAT))
    run.save_checkpoint(tmp_path / "own.ckpt")
    again = trainer(tmp_path, max_epochs=2)
    again.fit(Own(tiny_model().config), loader(FLOAT), ckpt_path=tmp_path / "own.ckpt")
    assert again.global_step == 8
    assert Own.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True).config == tiny_model().config


def test_lightning_finds_a_learning_rate(tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    from tests.training.test_precision import model_of

    run, model = trainer(tmp_path, max_steps=200, max_epochs=None, callbacks=[EMACallback()]), model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = Tuner(run).lr_find(model, datamodule=Patterns(), num_training=40, min_lr=1e-6, max_lr=1.0)
    assert found is not None and found.results["lr"][0] == pytest.approx(1e-6, rel=1)
    assert model.learning_rate == found.suggestion() == model.hparams["optimizer"]["learning_rate"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    run.fit(model, datamodule=Patterns())
    assert run.optimizers[0].param_groups[0]["initial_lr"] == model.learning_rate
