"""What loggers get: figures and grids, by the configurations that the package ships.

wandb and mlflow are not installed: stand-ins have the interface that Lightning's loggers and ours use, with the
signatures of wandb 0.21 and mlflow 3.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_vfs.callbacks import SampleGridCallback

LOGGERS = Path(__file__).parents[2] / "configs" / "loggers"


def module(name: str, monkeypatch: pytest.MonkeyPatch, **names: Any) -> ModuleType:
    made = ModuleType(name)
    for key, value in names.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for wandb; what its run logs."""
    logged: list[dict[str, Any]] = []

    class Run:
        id, name, dir = "id", "name", "."
        config = SimpleNamespace(update=lambda params, allow_val_change=None: None)

        def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
            logged.append(data)

        def define_metric(self, name: str, step_metric: str | None = None, step_sync: bool | None = None) -> None:
            pass

    class WandbImage:
        def __init__(self, data_or_path: Any, mode: str | None = None, caption: str | None = None) -> None:
            self.data = data_or_path

    def init(project: str | None = None, dir: str | None = None, **options: Any) -> Run:
        assert (project, dir) == ("lightning_vfs", "runs")
        return Run()

    made = module("wandb", monkeypatch, run=None, init=init, Image=WandbImage)
    made.sdk = module("wandb.sdk", monkeypatch)  # type: ignore[attr-defined]
    module("wandb.sdk.lib", monkeypatch, RunDisabled=type("RunDisabled", (), {}))
    module("wandb.wandb_run", monkeypatch, Run=Run)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return logged


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """A stand-in for mlflow; what its client is given."""
    given: dict[str, list[Any]] = {"images": [], "metrics": []}

    class MlflowClient:
        def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
            assert tracking_uri == "file:runs/mlruns"

        def get_experiment_by_name(self, name: str) -> Any:
            assert name == "lightning_vfs"
            return SimpleNamespace(lifecycle_stage="active", experiment_id="1")

        def create_run(self, experiment_id: str, start_time: Any = None, tags: Any = None, run_name: Any = None) -> Any:
            return SimpleNamespace(info=SimpleNamespace(run_id="run"))

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), synchronous: Any = None):
            given["metrics"] += metrics

        def log_image(
            self, run_id: str, image: Any, artifact_file: str | None = None, key: str | None = None,
            step: int | None = None, timestamp: int | None = None, synchronous: bool | None = None,
        ) -> None:  # fmt: skip
            given["images"].append((run_id, image, artifact_file))

        def get_run(self, run_id: str) -> Any:
            return SimpleNamespace()

        def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
            pass

    entity = lambda **fields: SimpleNamespace(**fields)  # noqa: E731
    module("mlflow", monkeypatch, set_tracking_uri=lambda uri: None)
    module("mlflow.tracking", monkeypatch, MlflowClient=MlflowClient)
    module("mlflow.entities", monkeypatch, Metric=entity, Param=entity)
    module("mlflow.tracking.context", monkeypatch)
    module("mlflow.tracking.context.registry", monkeypatch, resolve_tags=lambda tags: tags)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    return given


def shipped(name: str) -> dict[str, Any]:
    """Options of the logger that a shipped configuration adds."""
    (logger,) = yaml.safe_load((LOGGERS / f"{name}.yaml").read_text())["trainer"]["logger+"]
    return {**logger["init_args"], "class": logger["class_path"].rpartition(".")[2]}


class Figure(Callback):
    """Logs a figure, as evaluations do."""

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("copy_rate/out", 0.5)


@pytest.fixture
def fit(trainer, painter, data):
    """Trains an epoch of 4 steps with a sample grid, and figures, for loggers."""

    def run(*loggers) -> tuple[int, int]:
        grid = SampleGridCallback(num_classes=1, num_images=2, steps=1)
        trainer(grid, Figure(), logger=list(loggers), max_epochs=1).fit(painter(), datamodule=data())
        return Image.open(next(Path(loggers[0].save_dir).rglob("step=00000004.png"))).size

    return run


def test_wandb(fit, wandb: list[dict[str, Any]], tmp_path: Path) -> None:
    options = shipped("wandb")
    assert options.pop("class") == "WandbLogger"
    size = fit(CSVLogger(tmp_path), WandbLogger(**options))
    (grid,) = (data for data in wandb if "samples/test" in data)
    (image,) = grid["samples/test"]
    assert image.data.size == size and grid["trainer/global_step"] == 4
    assert any(data.get("copy_rate/out") == 0.5 for data in wandb)


def test_mlflow(fit, mlflow: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = shipped("mlflow")
    assert options.pop("class") == "MLFlowLogger"
    size = fit(CSVLogger(tmp_path), MLFlowLogger(**options))
    ((run, image, file),) = mlflow["images"]
    assert (run, image.size, file) == ("run", size, "samples/test/step=00000004.png")
    assert ("copy_rate/out", 0.5) in [(metric.key, metric.value) for metric in mlflow["metrics"]]


def test_tensorboard(fit, tmp_path: Path) -> None:
    size = fit(CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board", default_hp_metric=False))
    events = EventAccumulator(str(tmp_path / "board/lightning_logs/version_0"), {"images": 0, "scalars": 0}).Reload()
    (image,) = events.Images("samples/test")
    assert (image.width, image.height, image.step) == (*size, 4)
    assert [scalar.value for scalar in events.Scalars("copy_rate/out")] == [0.5]
