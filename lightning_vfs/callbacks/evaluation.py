"""What callbacks that generate images share: the state they evaluate in, and the data they need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import try_folder
from lightning_vfs.data.module import SetDataModule
from lightning_vfs.evaluation.model import undisturbed
from lightning_vfs.training.averaging import averaged_weights
from lightning_vfs.training.sharding import unsharded


@contextmanager
def evaluating(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Averaged weights, evaluation mode, no gradients and the trainer's precision inside; all is restored afterwards.

    So are the global random number generators: the evaluation does not change the training. All ranks must enter,
    because the parameters of a sharded model are gathered; inside, each may do something else.
    """
    with (
        undisturbed(pl_module),
        averaged_weights(trainer, pl_module),
        unsharded(pl_module),
        trainer.precision_plugin.val_step_context(),
    ):
        yield


def can_write(trainer: pl.Trainer, what: str, folder: Path, problem: str | None = None) -> bool:
    """Whether files can be written to a folder, found out before work is done; with a `problem`, they cannot.

    While a model is trained, a warning says so, and training continues. All ranks call it; the first one tries.

    Raises:
        EvaluationError: they cannot, and nothing is trained; on every rank.
    """
    if problem is None and trainer.is_global_zero:
        try:
            try_folder(folder)
        except OSError as error:
            problem = str(error)
    problem = trainer.strategy.broadcast(problem)
    if problem is None:
        return True
    message = f"{what} cannot be written to {folder}: {problem}. Choose another folder."
    if trainer.state.fn != TrainerFn.FITTING:
        raise EvaluationError(message)
    rank_zero_warn(message)
    return False


def sets_of(trainer: pl.Trainer, caller: Callback) -> SetDataModule:
    """The trainer's data module.

    Raises:
        EvaluationError: the trainer has no data module with splits of classes.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not callable(getattr(data, "split", None)):
        found = "none" if data is None else f"a {type(data).__name__}"
        raise EvaluationError(
            f"{type(caller).__name__} takes supports and real images from a SetDataModule (GlyphSets, FolderSets); "
            f"the trainer has {found}. Pass one: trainer.fit(model, datamodule=...)."
        )
    return data
