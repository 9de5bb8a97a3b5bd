"""Steps whose loss or gradients are not finite: they stop the run, or are skipped and counted; no weight sees them."""

from __future__ import annotations

import copy
import re
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lightning_vfs import VFSDDPM
from lightning_vfs.cli import main
from lightning_vfs.core.errors import NonFiniteLossError
from lightning_vfs.data import FolderSets
from lightning_vfs.modules.noise import TIMESTEP, indexed_uniform
from lightning_vfs.training.host_flag import HostFlag
from tests.commands.conftest import TINY
from tests.ranks import run_ranks
from tests.training.nonfinite_ranks import ByContrast, contrast_of, data_of, model_of, trainer_of, write_images

BAD_STEP = 1
"""Counted from 0, of 3 steps of 2 sets."""


class Absent(ByContrast):
    """For comparison: computes the steps as `ByContrast` does, and takes all but one."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if batch_idx // self.trainer.accumulate_grad_batches == BAD_STEP:
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class Momentum:
    """An optimizer that knows nothing of `found_inf`, and moves weights without a gradient of 0, too."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)  # type: ignore[attr-defined]


class MomentumByContrast(Momentum, ByContrast):
    pass


class MomentumAbsent(Momentum, Absent):
    pass


class WithMuon:
    """Its optimizer, in place of AdamW alone."""

    def configure_optimizers(self) -> Any:
        self.optimizer_config = replace(self.optimizer_config, name="muon")
        return super().configure_optimizers()  # type: ignore[misc]


class MuonByContrast(WithMuon, ByContrast):
    pass


class MuonAbsent(WithMuon, Absent):
    pass


class SteepWithoutContrast(VFSDDPM):
    """The loss of blank sets is finite, its gradient is not: that of a root at 0."""

    def losses(self, x_set: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        loss, kl = super().losses(x_set, t, *args, **kwargs)
        return loss + (contrast_of(x_set) * loss).sqrt(), kl


class OwnStep(SteepWithoutContrast):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.batch_loss(batch, batch_idx)


class OwnTerm(VFSDDPM):
    def batch_loss(self, batch: Any, batch_idx: int = 0) -> Tensor:
        return super().batch_loss(batch, batch_idx) + (torch.inf if batch_idx == BAD_STEP else 0)


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("anomalies") / "images")


@pytest.fixture
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether steps are read as on a GPU, one step later."""
    if request.param:
        monkeypatch.setattr(HostFlag, "_comes_late", staticmethod(lambda flag: True))
    return request.param


LATE = pytest.mark.parametrize("late", [False, True], ids=["at once", "late"], indirect=True)


def weights_of(model: VFSDDPM) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def assert_names_the_blank_set(message: str, data: FolderSets, position: int) -> None:
    """The message describes the set, its images in their order, and its timestep, and no other set."""
    timestep = int(indexed_uniform(torch.tensor([position]), 0, TIMESTEP) * 20)
    files = ", ".join(data.describe_sets([position])[0].images)
    assert re.fullmatch(r"blank/\d\.png, blank/\d\.png, blank/\d\.png", files)
    assert f"\n  blank (set {position}), timestep {timestep}, loss inf: {files}\n" in message
    assert not re.search(r"c\d/", message)


@LATE
@pytest.mark.parametrize("step", [1, 2], ids=["amid the epoch", "at its end"])
@pytest.mark.parametrize("saving", [False, True], ids=["", "saving"])
def test_a_bad_step_stops_the_run_and_touches_nothing(
    tmp_path: Path, images: Path, late: bool, step: int, saving: bool
) -> None:
    data, before = data_of(images, 2 * step + 1), model_of()
    trainer_of(max_steps=step).fit(before, datamodule=data)
    model = model_of()
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, save_last=True)
    trainer = trainer_of(enable_checkpointing=saving, callbacks=[checkpoint] if saving else [])
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(model, datamodule=data)
    message = str(caught.value)
    assert message.startswith(f"The loss of optimizer step {step + 1} (epoch 0) is inf, by 1 of its 2 sets:\n")
    assert_names_the_blank_set(message, data, 2 * step + 1)
    assert "--model.skip_nonfinite true" in message and "--model.optimizer.learning_rate" in message
    assert_equal(weights_of(model), weights_of(before))
    if not saving:
        assert "There is no checkpoint yet." in message
        return
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"epoch=0-step={number + 1}.ckpt" for number in range(step)),
        "last.ckpt",
    ]
    last = re.search(r"--ckpt_path (.*\.ckpt)\.$", message)
    assert last is not None and f"The last checkpoint is {last[1]}." in message
    assert_equal(weights_of(ByContrast.load_from_checkpoint(last[1])), weights_of(before))


SKIPPED: dict[str, tuple[type[VFSDDPM], type[VFSDDPM], dict[str, Any]]] = {
    "fused AdamW": (ByContrast, Absent, {}),
    "clipped": (ByContrast, Absent, {"gradient_clip_val": 0.1}),
    "accumulated": (ByContrast, Absent, {"accumulate_grad_batches": 2}),  # the bad batch is the first of two
    "another optimizer": (MomentumByContrast, MomentumAbsent, {}),
    "Muon": (MuonByContrast, MuonAbsent, {"gradient_clip_val": 0.1}),
    "Muon, gradient scaler": (MuonByContrast, MuonAbsent, {"plugins": MixedPrecision("16-mixed", "cpu")}),
    "gradient scaler": (ByContrast, Absent, {"plugins": MixedPrecision("16-mixed", "cpu")}),
}


@LATE
@pytest.mark.parametrize("case", SKIPPED)
def test_a_skipped_step_has_not_happened(images: Path, late: bool, case: str) -> None:
    kind, comparison, options = SKIPPED[case]
    accumulated = options.get("accumulate_grad_batches", 1)
    position = 2 * BAD_STEP + 2 - accumulated
    data = data_of(images, position, 2 // accumulated)
    expected = model_of(comparison)
    trainer_of(**options).fit(expected, datamodule=data)
    model, trainer = model_of(kind, skip=True), trainer_of(**options)
    with pytest.warns(UserWarning, match=r"optimizer step 2 \(epoch 0\) is inf, by 1 of its 2 sets") as caught:
        trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["train/skipped_steps"] == 1
    (message,) = [str(w.message) for w in caught if "optimizer step" in str(w.message)]
    assert_names_the_blank_set(message, data, position)
    assert message.endswith("This step is skipped: 1 so far.")
    assert_equal(weights_of(model), weights_of(expected))
    assert trainer.global_step == 3
    fresh = weights_of(model_of())
    assert not any(torch.equal(weights, fresh[name]) for name, weights in weights_of(model).items())


class Synchronizations(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: values of tensors that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Counted(ByContrast):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with Synchronizations() as found:
            loss = super().training_step(batch, batch_idx)
        self.counts.append(found.count)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        with Synchronizations() as found:
            super().on_before_optimizer_step(optimizer)
        self.counts.append(found.count)


@pytest.mark.parametrize("late", [True], indirect=True)
def test_a_step_reads_no_tensor(images: Path, late: bool) -> None:
    model, trainer = model_of(Counted, skip=True), trainer_of()
    with pytest.warns(UserWarning, match="This step is skipped: 1 so far"):
        trainer.fit(model, datamodule=data_of(images, 5))
    assert model.counts == [0] * 6
    assert trainer.callback_metrics["train/skipped_steps"] == 1


class Arrival:
    """As an event of CUDA, it cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def synchronize(self) -> None:
        pass


class Copies(Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.copy = copy.deepcopy(pl_module)


@pytest.mark.parametrize("late", [True], indirect=True)
def test_a_model_can_be_copied_amid_training(images: Path, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the host does not know yet whether the last step was finite."""

    def with_event(flag: HostFlag, value: Tensor) -> None:
        init(flag, value)
        flag._arrival = Arrival()

    init, copies = HostFlag.__init__, Copies()
    monkeypatch.setattr(HostFlag, "__init__", with_event)
    trainer_of(max_steps=1, callbacks=[copies]).fit(model_of(skip=True), datamodule=data_of(images, 5))
    assert not copies.copy._guard.settle(copies.copy)


def test_gradients_alone_can_be_bad(images: Path) -> None:
    data = data_of(images, 3)
    before = model_of(SteepWithoutContrast)
    trainer_of(max_steps=1).fit(before, datamodule=data)
    model = model_of(SteepWithoutContrast)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer_of().fit(model, datamodule=data)
    assert re.match(
        r"The gradients of optimizer step 2 \(epoch 0\) are not finite \(norm (nan|inf)\), but its loss is "
        r"\(\d\.\d+\); its 2 sets:\n  \w+ \(set \d\), timestep \d+, loss \d\.\d+: (\w+/\d\.png(, |\n)){3}  blank ",
        str(caught.value),
    )
    assert_equal(weights_of(model), weights_of(before))


@pytest.mark.parametrize(
    ("kind", "batch_size", "message"),
    [
        (
            SteepWithoutContrast,
            6,
            r"; its 6 sets:(\n  \w+ \(set \d\), timestep .*){5}\n  and 1 more\nThe weights are those",
        ),
        (
            OwnStep,
            2,
            r"The gradients of .* \(norm nan\)\. Its sets are not known: OwnStep has its own training_step or",
        ),
        (
            OwnTerm,
            2,
            r"The loss .* is inf, by none of its 2 sets alone:(\n  \w+ \(set [23]\), .*, loss \d.*){2}\nThe w",
        ),
    ],
)
def test_what_is_not_known_of_a_step_is_said(images: Path, kind: type[VFSDDPM], batch_size: int, message: str) -> None:
    with pytest.raises(NonFiniteLossError, match=message):
        trainer_of().fit(model_of(kind), datamodule=data_of(images, 3, batch_size))


def test_gradients_that_overflow_are_the_business_of_a_gradient_scaler(images: Path) -> None:
    scaled = MixedPrecision("16-mixed", "cpu")
    trainer = trainer_of(plugins=scaled)
    trainer.fit(model_of(SteepWithoutContrast), datamodule=data_of(images, 5))
    assert not torch.isfinite(trainer.callback_metrics["train/grad_norm"])
    assert scaled.scaler.get_scale() == 2.0**15  # once halved


def test_the_count_goes_on_with_a_resumed_run_and_warnings_come_to_an_end(tmp_path: Path, images: Path) -> None:
    data = data_of(images, 3)  # a blank set in every epoch
    first = trainer_of(enable_checkpointing=True, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="This step is skipped: 1 so far"):
        first.fit(model_of(skip=True), datamodule=data)
    first.save_checkpoint(tmp_path / "first.ckpt")
    second = trainer_of(max_epochs=13)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second.fit(model_of(skip=True), datamodule=data, ckpt_path=str(tmp_path / "first.ckpt"))
    assert second.callback_metrics["train/skipped_steps"] == 13
    said = [str(w.message) for w in caught if "This step is skipped" in str(w.message)]
    assert [message.split("skipped: ")[1] for message in said] == [
        *(f"{number} so far." for number in range(2, 11)),
        "11 so far. Further ones get no warning.",
    ]
    assert "(epoch 1)" in said[0]


def test_without_a_data_module_sets_are_told_by_their_place(images: Path) -> None:
    data = data_of(images, 3)
    batches = [batch | {"images": batch["images"].clone()} for batch in data.train_dataloader()]
    with pytest.raises(NonFiniteLossError) as caught:
        trainer_of().fit(model_of(), DataLoader(batches, batch_size=None))
    label = batches[1]["label"][1]
    assert f"\n  set 1 of batch 1 on rank 0 (index 3, label {label}), timestep " in str(caught.value)
    with pytest.raises(
        NonFiniteLossError, match=r"\n  set 1 of batch 1 on rank 0 \(index \d+\), timestep \d+, loss inf"
    ):
        trainer_of().fit(model_of(), DataLoader([batch["images"] for batch in batches], batch_size=None))


def test_the_command_line_stops_with_the_error_or_skips_on_demand(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that makes the weights too large for float32 in the first step."""
    (tmp_path / "tiny.yaml").write_text(TINY.format(runs=tmp_path, images=images))
    flags = ["--model.optimizer.learning_rate=1e30", "--model.optimizer.warmup_steps=0", "--data.set_size=3"]
    command = ["fit", f"--config={tmp_path / 'tiny.yaml'}", "--trainer.max_steps=3", *flags]
    assert main(command) == 1
    said = capsys.readouterr().err
    last = tmp_path / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    assert re.search(
        r"^NonFiniteLossError: The loss of optimizer step 2 \(epoch 0\) is (nan|inf), by 2 of its 2", said, re.M
    )
    assert f"\nThe weights are those before this step. The last checkpoint is {last}.\n" in said
    assert torch.load(last, weights_only=True)["global_step"] == 1

    with pytest.warns(UserWarning, match="This step is skipped: [12] so far") as given:
        assert main([*command, "--model.skip_nonfinite=true", "--trainer.logger.init_args.name=skipping"]) == 0
    assert len(given) == 2
    checkpoint = torch.load(tmp_path / "skipping/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["skipped_steps"] == 2 and checkpoint["global_step"] == 3
    assert checkpoint["hyper_parameters"]["skip_nonfinite"] is True


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks reports, one of which has the blank set."""
    folder = tmp_path_factory.mktemp("ranks")
    write_images(folder / "images")
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "LIGHTNING_VFS_CACHE": str(folder / "cache"),
        "PL_GLOBAL_SEED": "0",
    }
    run_ranks(Path(__file__).with_name("nonfinite_ranks.py"), 2, folder, **environment)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_stop_with_the_same_message(of_two_ranks: list[dict[str, Any]], images: Path) -> None:
    first, second = of_two_ranks
    assert first["stopped"] == second["stopped"]
    assert first["stopped"].startswith("The loss of optimizer step 2 (epoch 0) is inf, by 1 of its 2 sets:\n")
    assert_names_the_blank_set(first["stopped"], data_of(images, 3), 3)


@pytest.mark.parametrize("name", ["skipped", "sharded"])
def test_two_ranks_skip_the_same_step(of_two_ranks: list[dict[str, Any]], images: Path, name: str) -> None:
    expected, alone = model_of(Absent), trainer_of()
    alone.fit(expected, datamodule=data_of(images, 3))
    for found in of_two_ranks:
        assert found[name]["train/skipped_steps"] == 1
        for figure in ("train/loss", "train/grad_norm"):
            assert found[name][figure] == pytest.approx(float(alone.callback_metrics[figure]), rel=1e-4)
        for parameter, weights in expected.named_parameters():
            torch.testing.assert_close(found[f"{name} weights"][parameter], weights.detach(), atol=1e-4, rtol=0)
