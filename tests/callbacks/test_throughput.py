"""ThroughputCallback: its figures by a clock of the test's own, over validation, accumulation and ranks."""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_vfs import VFSDDPM, ThroughputCallback
from lightning_vfs.core import ConfigError
from lightning_vfs.data import ClassImages
from lightning_vfs.modules.cost import step_flops

FETCH, TRAIN, VALIDATE = 1.0, 3.0, 1000.0
IMAGES = 16  # of 4 sets of 4
Row = dict[str, float]


class Clock:
    """Seconds that pass when somebody says so: fetching takes FETCH, on rank 1 thrice as long."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def fetch(self) -> None:
        distributed = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        self.now += 3 * FETCH if distributed else FETCH


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, pixels = Clock(), ClassImages.uint8

    def fetch(self: ClassImages, members: Any) -> torch.Tensor:
        clock.fetch()
        return pixels(self, members)

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(ClassImages, "uint8", fetch)
    return clock


class Timed(VFSDDPM):
    """Every batch takes VALIDATE seconds, or by turns one second less than TRAIN and one more."""

    clock: Clock

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.clock.now += TRAIN + (1 if batch_idx % 2 else -1)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.clock.now += VALIDATE


@pytest.fixture
def fit(clock: Clock, trainer: Callable, data: type, config: Any, tmp_path: Path) -> Callable[..., dict[int, Row]]:
    """Train two epochs of 4 batches with a time of logging every other step; what was logged, by step."""

    def run(callback: ThroughputCallback | None = None, **options: Any) -> dict[int, Row]:
        torch.manual_seed(0)
        model = Timed(config)
        model.clock = clock
        fitting = {"logger": CSVLogger(tmp_path, "", ""), "log_every_n_steps": 2} | options
        trainer(callback or ThroughputCallback(), **fitting).fit(model, datamodule=data())
        return read(tmp_path / "metrics.csv")

    return run


def read(path: Path) -> dict[int, Row]:
    """Figures of the callback by the number of the step."""
    with path.open() as file:
        rows = [(int(row["step"]) + 1, row) for row in csv.DictReader(file)]
    ours = ("images", "tflops", "mfu", "data", "peak")
    return {
        step: {
            name: float(value)
            for name, value in row.items()
            if value and name.startswith("train/") and name.removeprefix("train/").startswith(ours)
        }
        for step, row in rows
        if row.get("train/loss")
    }


def test_figures_are_of_the_steps_since_the_last_without_validation(fit: Callable, config: Any) -> None:
    with pytest.warns(UserWarning, match="waits for data") as caught:
        logged = fit()
    assert list(logged) == [2, 4, 6, 8]
    assert logged[2] == {}
    for step in (4, 6, 8):
        assert logged[step] == pytest.approx(
            {
                "train/images_per_second_per_rank": IMAGES / (FETCH + TRAIN),
                "train/images_per_second": IMAGES / (FETCH + TRAIN),
                "train/tflops_per_second_per_rank": step_flops(config, sets=4) / (FETCH + TRAIN) / 1e12,
                "train/data_wait_share": FETCH / (FETCH + TRAIN),
            }
        )
    (warning,) = (str(each.message) for each in caught if "waits for data" in str(each.message))
    assert warning.startswith("Training waits for data 25% of the time, more than the 20%")
    assert "0 worker(s)" in warning and "--data.num_workers" in warning


def test_utilisation_is_the_share_of_the_devices_peak(
    fit: Callable, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = 10 * step_flops(config, sets=4)
    monkeypatch.setattr("lightning_vfs.callbacks.throughput.get_available_flops", lambda *_: peak)
    logged = fit(ThroughputCallback(max_data_wait_share=1.0))
    assert logged[4]["train/mfu"] == pytest.approx(0.1 / (FETCH + TRAIN))


def test_no_warning_below_the_threshold_and_none_without_a_logger(fit: Callable) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Training waits for data")
        fit(ThroughputCallback(max_data_wait_share=0.3))
    with pytest.warns(UserWarning, match="Training waits for data 25%"):
        fit(logger=False)


def test_accumulated_batches_are_all_counted(fit: Callable) -> None:
    logged = fit(accumulate_grad_batches=2)
    assert list(logged) == [2, 4]
    assert logged[4]["train/images_per_second"] == IMAGES / (FETCH + TRAIN)
    assert logged[4]["train/data_wait_share"] == pytest.approx(FETCH / (FETCH + TRAIN))


def test_ranks_add_up_and_the_slowest_loader_counts(fit: Callable) -> None:
    logged = fit(strategy="ddp_fork", devices=2)
    per_rank = IMAGES / (FETCH + TRAIN)
    assert logged[4]["train/images_per_second_per_rank"] == per_rank
    assert logged[4]["train/images_per_second"] == 2 * per_rank
    assert logged[4]["train/data_wait_share"] == pytest.approx(3 * FETCH / (3 * FETCH + TRAIN))


def test_it_changes_nothing_in_the_training(trainer: Callable, data: type, config: Any) -> None:
    weights, states = [], []
    for callbacks in ([], [ThroughputCallback()]):
        torch.manual_seed(0)
        model = VFSDDPM(config)
        trainer(*callbacks, log_every_n_steps=1, max_epochs=1).fit(model, datamodule=data())
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
        states.append(torch.get_rng_state())
    assert torch.equal(*weights)
    assert torch.equal(*states)


def test_other_loaders_and_modules_have_the_figures_that_can_be_had(
    trainer: Callable, painter: type, data: type
) -> None:
    """A loader that does not say how long it is waited for, and a module whose operations are not known."""
    loader = DataLoader(torch.zeros(16, 4, 1, 8, 8), batch_size=4)
    run = trainer(ThroughputCallback(), log_every_n_steps=1)
    run.fit(painter(), loader)
    logged = {name for name in run.callback_metrics if name.startswith("train/")}
    assert logged == {"train/images_per_second", "train/images_per_second_per_rank"}


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_data_wait_share is 20"):
        ThroughputCallback(max_data_wait_share=20)


@pytest.mark.gpu
def test_on_a_gpu_memory_is_logged_and_the_device_waited_for_only_then(
    data: type, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, synchronize = [], torch.cuda.synchronize
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: waits.append(synchronize(*device)))
    run = pl.Trainer(
        accelerator="gpu", devices=1, max_epochs=2, limit_val_batches=0, log_every_n_steps=2, default_root_dir=tmp_path,
        callbacks=[ThroughputCallback()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    run.fit(VFSDDPM(config), datamodule=data())
    assert 0 < run.callback_metrics["train/peak_memory_gib"] < 1
    assert len(waits) <= 4 + 2  # 8 steps; Lightning itself waits at the end
