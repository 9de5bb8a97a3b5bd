"""Private names of other libraries: each that is used exists and behaves as assumed, and there are no others."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchmetrics import SumMetric

import lightning_vfs
from lightning_vfs.data.sets import SetLoader

PACKAGE = Path(lightning_vfs.__file__).parent
LIGHTNING = "https://github.com/Lightning-AI/pytorch-lightning"


def trainer_in(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    given = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "callbacks": list(callbacks)}
    return Trainer(**quiet | given | options)


class Before(Callback):
    """Calls a function at the start of every batch, or at its end."""

    def __init__(self, start: Callable = lambda *_: None, end: Callable = lambda *_: None) -> None:
        self.start, self.end = start, end

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.start(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.end(trainer)


def last_save(folder: Path) -> None:
    """A ModelCheckpoint does not save at the step that it holds, and does not store it."""
    saving = ModelCheckpoint(folder / "saved", every_n_train_steps=1, save_top_k=-1)

    def remember(trainer: Trainer) -> None:
        saving._last_global_step_saved = trainer.global_step + (trainer.global_step == 1)

    trainer_in(folder, Before(remember), saving, max_steps=3).fit(BoringModel())
    assert sorted(path.name for path in (folder / "saved").glob("*")) == ["epoch=0-step=1.ckpt", "epoch=0-step=3.ckpt"]
    assert not any("global_step" in name for name in saving.state_dict())


def sigterm(folder: Path) -> None:
    """The loop calls it without arguments, before every batch of several processes, and it waits for the device."""
    loop = trainer_in(folder).fit_loop.epoch_loop
    assert not inspect.signature(loop._broadcast_sigterm_tensor).parameters
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(type(loop).advance)
    assert ".item()" in inspect.getsource(type(loop)._broadcast_sigterm_tensor)


def environment(folder: Path) -> None:
    """The connector has the environment that the user gave; the strategy of a single device has none."""
    given = SLURMEnvironment(auto_requeue=False)
    trainer = trainer_in(folder, plugins=[given])
    assert trainer._accelerator_connector.cluster_environment is given
    assert not hasattr(trainer.strategy, "cluster_environment")


def stepped_batches(folder: Path) -> None:
    """At the end of a batch, one less than the steps; it is what the loop stores."""
    counted: list[tuple[int, int]] = []

    def count(trainer: Trainer) -> None:
        counted.append((trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.global_step))

    trainer = trainer_in(folder, Before(end=count), accumulate_grad_batches=2, max_steps=2, enable_checkpointing=False)
    trainer.fit(BoringModel())
    assert counted == [(0, 0), (0, 1), (1, 1), (1, 2)]
    trainer.fit_loop.epoch_loop._batches_that_stepped = 7
    assert trainer.fit_loop.epoch_loop.on_save_checkpoint()["_batches_that_stepped"] == 7


def workers(folder: Path) -> None:
    """A DataLoader has its workers there, and Lightning ends those that it finds there at the end of a run."""
    loader = SetLoader.__new__(SetLoader)
    loader._loader = DataLoader(range(2), num_workers=1, persistent_workers=True)
    iterator = iter(loader._loader)
    assert loader._iterator is iterator
    CombinedLoader([loader]).reset()
    assert loader._loader._iterator is None
    assert not any(worker.is_alive() for worker in iterator._workers)


def adamw(fused: bool) -> torch.optim.AdamW:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.AdamW([parameter], fused=fused)


def scaling(folder: Path) -> None:
    """It is true of a fused optimizer alone."""
    assert adamw(fused=True)._step_supports_amp_scaling
    assert not getattr(adamw(fused=False), "_step_supports_amp_scaling", False)


def found_inf(folder: Path) -> None:
    """A fused step changes nothing where it is 1."""
    for found, changed in ((1.0, False), (0.0, True)):
        optimizer = adamw(fused=True)
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        assert optimizer.param_groups[0]["params"][0].equal(torch.ones(2)) is not changed


def synced(folder: Path) -> None:
    """Whether a metric has the states of all ranks at the moment."""
    metric = SumMetric()
    metric.update(2.0)
    assert metric._is_synced is False
    metric.sync(dist_sync_fn=lambda value, group: [value, value], distributed_available=lambda: True)
    assert metric._is_synced is True
    metric.unsync()
    assert metric._is_synced is False


def whole_checkpoints(folder: Path) -> None:
    """The option is kept under this name alone."""
    for given in (True, False):
        assert ModelParallelStrategy(save_distributed_checkpoint=given)._save_distributed_checkpoint is given
    assert not hasattr(ModelParallelStrategy(), "save_distributed_checkpoint")


def fake_tensors(folder: Path) -> None:
    """They have shapes and devices, and take no memory."""
    weight = torch.ones(4, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        product = torch.empty(10**12, 4) @ weight
    assert isinstance(product, FakeTensor)
    assert (product.shape, product.device.type) == ((10**12, 3), "cpu")


def dispatch(folder: Path) -> None:
    """A mode sees every operation; one on a list of tensors is one."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[Any] = []
    with Seen():
        torch._foreach_add_([torch.zeros(1), torch.zeros(1)], 1.0)
    assert [func.is_view for func in seen] == [False] * 3
    assert {func.namespace for func in seen} == {"aten"}


def foreach_copy(folder: Path) -> None:
    """It copies between types, and works in place."""
    copies = [torch.empty(2), torch.empty(3)]
    torch._foreach_copy_(copies, [torch.ones(2, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)])
    assert torch.cat(copies).tolist() == [1, 1, 0, 0, 0]


class Use(NamedTuple):
    """Where a name is used, why, what says more, and a check of what is assumed."""

    files: tuple[str, ...]
    reason: str
    link: str
    check: Callable[[Path], None]


USES = {
    "_last_global_step_saved": Use(
        ("training/resuming.py",),
        "A resumed ModelCheckpoint saves again at the step it was saved at; it has no option and stores no such step.",
        f"{LIGHTNING}/pull/12057",
        last_save,
    ),
    "_broadcast_sigterm_tensor": Use(
        ("callbacks/preemption.py",),
        "It makes the host wait for the device before every batch; no option turns it off.",
        f"{LIGHTNING}/issues/21487",
        sigterm,
    ),
    "_accelerator_connector": Use(
        ("callbacks/preemption.py",),
        "Only it knows SLURMEnvironment(auto_requeue=False) on a single device.",
        f"{LIGHTNING}/issues/6389",
        environment,
    ),
    "_batches_that_stepped": Use(
        ("training/logged_steps.py", "interop/lightning_state.py"),
        "The loggers' step, which after some resumes is not the trainer's global_step.",
        f"{LIGHTNING}/pull/20379",
        stepped_batches,
    ),
    "_iterator": Use(
        ("data/sets.py",),
        "SetLoader is no DataLoader, and its workers have to end with the run.",
        f"{LIGHTNING}/blob/2.6.0/src/lightning/pytorch/utilities/combined_loader.py",
        workers,
    ),
    "_save_distributed_checkpoint": Use(
        ("training/sharding.py",),
        "The strategy shows its option under no other name.",
        f"{LIGHTNING}/blob/2.6.0/src/lightning/pytorch/strategies/model_parallel.py",
        whole_checkpoints,
    ),
    "_step_supports_amp_scaling": Use(
        ("training/optimizer.py",),
        "By it GradScaler and Lightning tell optimizers that leave a step out by themselves.",
        f"{LIGHTNING}/issues/21435",
        scaling,
    ),
    "found_inf": Use(
        ("training/nonfinite.py",),
        "It leaves a step out without the host waiting for the device; documented for GradScaler alone.",
        "https://github.com/pytorch/pytorch/pull/81705",
        found_inf,
    ),
    "_foreach_copy_": Use(
        ("training/averaging.py",),
        "One operation for all weights; torch.foreach is not in the lowest version that is allowed.",
        "https://github.com/pytorch/pytorch/issues/145355",
        foreach_copy,
    ),
    "_subclasses": Use(
        ("modules/cost.py",),
        "Fake tensors are documented under this name.",
        "https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html",
        fake_tensors,
    ),
    "_python_dispatch": Use(
        ("modules/cost.py",),
        "TorchDispatchMode is documented under this name.",
        "https://docs.pytorch.org/docs/stable/notes/extending.html",
        dispatch,
    ),
    "_is_synced": Use(
        ("metrics/indexed.py",),
        "Inside `compute` nothing else says whether states are those of all ranks.",
        "https://github.com/Lightning-AI/torchmetrics/pull/339",
        synced,
    ),
}


@pytest.mark.parametrize("name", USES)
def test_a_private_name_behaves_as_assumed(name: str, tmp_path: Path) -> None:
    USES[name].check(tmp_path)


def test_names_of_the_loops_that_resuming_relies_on(tmp_path: Path) -> None:
    """They are not private by name, nor documented (Lightning's pull request 20379); test_resume has what they do."""
    trainer = trainer_in(tmp_path, max_steps=1, enable_checkpointing=False)
    trainer.fit(BoringModel())
    loop = trainer.fit_loop
    assert loop.restarted_mid_epoch is loop.restarted_on_epoch_end is loop.epoch_loop.restarting is False
    assert callable(loop.reset_restart_stage) and callable(loop.epoch_progress.increment_completed)
    assert loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed == 1
    state = loop.state_dict()
    batches, epochs = state["epoch_loop.batch_progress"], state["epoch_progress"]
    assert batches["current"]["ready"] == 1 and batches["is_last_batch"] is False
    assert epochs["current"] == {"ready": 1, "started": 1, "processed": 1, "completed": 1}
    assert isinstance(state["state_dict"], dict)


# -- and no others ----------------------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    documented = ("_", "_replace", "_asdict", "_fields")  # those of NamedTuple are public
    return name.startswith("_") and not name.startswith("__") and name not in documented


def own_names(tree: ast.Module) -> set[str]:
    """Names that a module defines: functions, classes, variables, and attributes of `self` and `cls`."""
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            own.add(node.attr)
    return own


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private names of others in a module: attributes, also by getattr and the like, and what is imported."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module)) if module in sys.stdlib_module_names:
                pass
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield name
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                if is_private(name) and name not in own:
                    yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                parts = [part for alias in names for part in alias.name.split(".")]
                yield from filter(is_private, [*parts, *(getattr(node, "module", None) or "").split(".")])


def overridden(module: ModuleType) -> Iterator[str]:
    """Private methods and properties of other libraries' classes that a module's classes redefine."""
    for kind in vars(module).values():
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            foreign = [base for base in kind.__mro__ if not base.__module__.startswith("lightning_vfs")]
            own = [name for name, value in vars(kind).items() if callable(value) or isinstance(value, property)]
            yield from (name for name in own if is_private(name) and any(name in vars(base) for base in foreign))


def found_in_package() -> set[tuple[str, str]]:
    """Files and private names of others in them."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    own = {"lightning_vfs": set()} | {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): own_names(tree)
        for path, tree in trees.items()
    }
    found = set()
    for path, tree in trees.items():
        imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        ours = own_names(tree).union(*(own.get(name, set()) for name in imported))
        found |= {(path.relative_to(PACKAGE).as_posix(), name) for name in private_names(tree, ours)}
    for info in pkgutil.walk_packages([str(PACKAGE)], "lightning_vfs."):
        if info.name != "lightning_vfs.__main__":
            try:
                module = importlib.import_module(info.name)
            except ModuleNotFoundError as missing:
                if missing.name != "gradio":  # of an extra that the tests do without
                    raise
                continue
            found |= {(Path(module.__file__).relative_to(PACKAGE).as_posix(), name) for name in overridden(module)}
    return found


def test_there_are_no_others() -> None:
    known = {(file, name) for name, use in USES.items() for file in use.files}
    unknown = sorted(found_in_package() - known)
    assert not unknown, f"private names of other libraries: {unknown}; find a public way, or add them to USES"


@pytest.mark.parametrize("name", USES)
def test_what_is_listed_is_used(name: str) -> None:
    assert all(name in (PACKAGE / file).read_text() for file in USES[name].files)


FOREIGN = """
import torch._dynamo
from torch.nn import _reduction

class Mine(Callback):
    def __init__(self, trainer):
        self._mine, self._own = 1, trainer._loops
        trainer.callbacks[0]._patched = self._mine
        self._theirs[0] = getattr(trainer, "_strings")
        os._exit(super()._parents)
"""


def test_the_search_finds_what_is_not_ours() -> None:
    tree = ast.parse(FOREIGN)
    found = sorted(private_names(tree, own_names(tree)))
    assert found == ["_dynamo", "_loops", "_parents", "_patched", "_reduction", "_strings", "_theirs"]
    module = ModuleType("lightning_vfs.module")
    vars(module)["Metric"] = SumMetric
    exec("class Mine(Metric):\n    def _wrap_update(self): ...\n    def _mine(self): ...", vars(module))
    assert list(overridden(module)) == ["_wrap_update"]
