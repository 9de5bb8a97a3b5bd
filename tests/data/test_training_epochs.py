"""What a Trainer sees of the data: other sets every epoch, also after a resume, and over ranks."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vfs.data import SetDataModule

Sets = type[SetDataModule]


class Recorder(LightningModule):
    """Writes down the images of every set that it is given."""

    def __init__(self, out: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": []}
        self.out = out

    def _record(self, stage: str, batch: Any) -> None:
        images = ((batch["images"][:, :, 0, 0, 0] + 1) * 127.5).round().long().tolist()
        self.seen[stage].append([self.current_epoch, batch["index"].tolist(), images])

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self._record("train", batch)
        return self.weight**2

    def validation_step(self, batch: Any, _: int) -> None:
        self._record("val", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_fit_end(self) -> None:
        if self.out:
            (self.out / f"rank{self.global_rank}.json").write_text(json.dumps(self.seen))


def trainer(**arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    arguments = {"accelerator": "cpu", "num_sanity_val_steps": 0, "enable_checkpointing": False} | quiet | arguments
    return Trainer(**arguments)


def fit(
    data: SetDataModule, ckpt_path: Path | None = None, saver: ModelCheckpoint | None = None, **arguments: Any
) -> Recorder:
    model = Recorder()
    checkpointing = {"enable_checkpointing": True, "callbacks": [saver]} if saver else {}
    trainer(**(checkpointing | arguments)).fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model


@pytest.fixture
def data(numbered_sets: Sets, request: pytest.FixtureRequest) -> SetDataModule:
    return numbered_sets(num_workers=getattr(request, "param", 0))


with_and_without_workers = pytest.mark.parametrize("data", [0, 2], indirect=True, ids=["0 workers", "2 workers"])


class Floats(LightningModule):
    """Keeps the images of every batch, of whichever stage."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def validation_step(self, batch: Any, _: int) -> None:
        self.seen.append(batch["images"])

    test_step = predict_step = validation_step


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64), ("bf16-true", torch.bfloat16)]
)
def test_a_module_gets_floats_of_the_trainers_precision(
    numbered_sets: Sets, precision: str, dtype: torch.dtype
) -> None:
    data, model = numbered_sets(counts=[50] * 5, set_size=40), Floats()
    run = trainer(precision=precision)
    run.validate(model, datamodule=data, verbose=False)
    run.test(model, datamodule=data, verbose=False)
    run.predict(model, datamodule=data)
    travelled = [batch["images"] for loader in (data.val_dataloader(), data.test_dataloader()) for batch in loader]
    assert {images.dtype for images in travelled} == {torch.uint8}
    stages = travelled + travelled[len(data.val_dataloader()) :]  # prediction is on the test sets
    for seen, pixels in zip(model.seen, stages, strict=True):
        assert seen.dtype == dtype
        assert torch.equal(seen, (pixels.float() / 127.5 - 1).to(dtype))


@with_and_without_workers
def test_every_epoch_has_sets_of_its_own_and_validation_always_the_same(data: SetDataModule) -> None:
    model = fit(data, max_epochs=3)
    train = model.seen["train"]
    assert [epoch for epoch, _, _ in train] == [0] * 6 + [1] * 6 + [2] * 6
    assert [i for _, index, _ in train for i in index] == list(range(72))
    epochs = [[images for epoch, _, images in train if epoch == e] for e in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    validated = [[images for epoch, _, images in model.seen["val"] if epoch == e] for e in range(3)]
    assert validated[0] == validated[1] == validated[2]


def test_workers_end_with_the_run(numbered_sets: Sets) -> None:
    run = trainer(max_epochs=1)
    run.fit(Recorder(), datamodule=numbered_sets(num_workers=1))
    assert not multiprocessing.active_children()


@with_and_without_workers
@pytest.mark.parametrize("step", [1, 6, 8, 12], ids=lambda step: f"after step {step}")
def test_a_resumed_run_goes_on_with_the_sets_that_come_next(data: SetDataModule, tmp_path: Path, step: int) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fit(data, saver=saver, max_epochs=3)
    resumed = fit(data, tmp_path / f"step={step}.ckpt", max_epochs=3)
    assert resumed.seen["train"] == whole.seen["train"][step:]


@pytest.mark.parametrize("hook", ["train epoch end", "validation end"])
def test_a_run_resumes_from_checkpoints_of_an_epochs_end(data: SetDataModule, tmp_path: Path, hook: str) -> None:
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=hook == "train epoch end")
    whole = fit(data, saver=saver, max_epochs=3)
    resumed = fit(data, tmp_path / "epoch=1.ckpt", max_epochs=3)
    assert resumed.seen["train"] == whole.seen["train"][12:]


def test_overfitting_trains_on_the_same_batches_in_every_epoch(data: SetDataModule) -> None:
    model = fit(data, max_epochs=2, overfit_batches=2)
    images = [images for _, _, images in model.seen["train"]]
    assert images[:2] == images[2:]


def test_ranks_share_the_sets_of_one_process(numbered_sets: Sets, tmp_path: Path) -> None:
    alone = fit(numbered_sets(batch_size=4), max_epochs=2)
    two = trainer(strategy="ddp_fork", devices=2, max_epochs=2)
    two.fit(Recorder(tmp_path), datamodule=numbered_sets(batch_size=2))
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for stage in ("train", "val"):
        together = [
            [epoch, index + other_index, images + other_images]
            for (epoch, index, images), (_, other_index, other_images) in zip(*(r[stage] for r in ranks), strict=True)
        ]
        assert together == alone.seen[stage]
