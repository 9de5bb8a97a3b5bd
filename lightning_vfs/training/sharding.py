"""Models whose parameters are sharded over ranks: FSDP2, by Lightning's ModelParallelStrategy.

Lightning loads and saves the model and the optimizer of such a run; the rest of a checkpoint, above all the averaged
weights, is gathered and sharded here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_vfs.core.errors import ConfigError
from lightning_vfs.training.blocks import NetworkBlock
from lightning_vfs.training.checkpoints import read_checkpoint
from lightning_vfs.training.optimizer import check_numbering, number_by_module

_METHODS = ("training_step", "validation_step", "test_step", "encode", "generate", "sample", "bits_per_dim")
"""Methods called from outside that need parameters outside of the networks; none of them calls another."""


_WEIGHTS = ("state_dict", "current_model_state")
"""Parts of a checkpoint that hold weights: the averaged ones, if there are any, and the raw ones."""


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that shards in a way in which the models cannot be trained or saved.

    Raises:
        ConfigError: FSDP 1, tensor parallelism, or distributed checkpoints.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ConfigError(
            "FSDPStrategy is FSDP 1, in which Lightning does not clip gradients by their norm: use FSDP 2, --config "
            "configs/scale/fsdp.yaml (--trainer.strategy lightning.pytorch.strategies.ModelParallelStrategy)."
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if strategy._save_distributed_checkpoint:
        raise ConfigError(
            "ModelParallelStrategy would save checkpoints in pieces, which only the same number of ranks can load: set "
            "--trainer.strategy.init_args.save_distributed_checkpoint false, which gathers them into one file."
        )
    if strategy.device_mesh["tensor_parallel"].size() > 1:
        raise ConfigError(
            f"ModelParallelStrategy would split every layer over {strategy.device_mesh['tensor_parallel'].size()} "
            "ranks (tensor parallelism), which these models do not support: set "
            f"--trainer.strategy.init_args.data_parallel_size {strategy.world_size} and "
            "--trainer.strategy.init_args.tensor_parallel_size 1, which shard parameters over the ranks."
        )


def shard(model: nn.Module, mesh: DeviceMesh, compile: bool = False) -> None:
    """Shard every parameter of a model over the ranks of a mesh; it is gathered when its block computes (FSDP2).

    Blocks are sharded one by one, then the networks that they are in, then the rest. They are also compiled one by one:
    gathering happens between them.
    """
    networks = [child for child in model.children() if any(True for _ in child.parameters())]
    blocks = [module for module in model.modules() if isinstance(module, NetworkBlock)]
    for block in blocks if compile else ():
        block.compile(fullgraph=True)
    for module in (*blocks, *networks, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for name in _METHODS:
        register_fsdp_forward_method(model, name)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on a model."""
    return isinstance(model, FSDPModule)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Whole parameters on every rank inside, so that a rank may compute alone; collective at the start."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def gathered(state: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """Whole tensors on the CPU instead of shards; collective.

    Args:
        state: tensors by name.
        keep: on this rank; elsewhere the result is empty.
    """
    whole: dict[str, Any] = {}
    for name, value in state.items():
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            whole[name] = value.cpu() if isinstance(value, Tensor) else value
    return whole


def cut(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Shards instead of whole tensors, as the parameters of a model are sharded."""
    parameters = dict(model.named_parameters())

    def as_there(name: str, value: Tensor) -> Tensor:
        there = parameters.get(name)
        if not isinstance(there, DTensor) or isinstance(value, DTensor):
            return value
        # Every rank has read the same file: nothing has to be sent.
        return distribute_tensor(value.to(there.device), there.device_mesh, there.placements, src_data_rank=None)

    return {name: as_there(name, value) for name, value in state.items()}


class ShardableModule(pl.LightningModule):
    """A LightningModule that can be sharded, and whose checkpoints do not depend on the number of ranks."""

    @property
    def attached_trainer(self) -> pl.Trainer | None:
        """The trainer that it is attached to, if any."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    def configure_model(self) -> None:
        """Under Lightning's ModelParallelStrategy: shard this module over all ranks (FSDP2)."""
        strategy = getattr(self.attached_trainer, "strategy", None)
        if isinstance(strategy, ModelParallelStrategy) and not is_sharded(self):
            shard(self, strategy.device_mesh["data_parallel"], compile=self.hparams["compile"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """If the model is sharded: put the weights back into the checkpoint, sharded like the model's.

        Raises:
            CheckpointError: the optimizer's state is one that cannot be sharded.
        """
        if not is_sharded(self):
            return
        # Lightning has loaded the weights from the file, and removed them from the checkpoint.
        whole = read_checkpoint(cast(Path, self.trainer.ckpt_path))
        for name in _WEIGHTS:
            if name in whole:
                checkpoint[name] = cut(whole[name], self)
        for state, optimizer in zip(whole.get("optimizer_states", ()), self.trainer.optimizers, strict=False):
            check_numbering(state, optimizer, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gather weights, if the model is sharded; number the optimizer's parameters alike in any case."""
        if is_sharded(self):
            for name in _WEIGHTS:
                if name in checkpoint:
                    checkpoint[name] = gathered(checkpoint[name], keep=self.trainer.is_global_zero)
        elif checkpoint.get("optimizer_states"):
            states = zip(checkpoint["optimizer_states"], self.trainer.optimizers, strict=True)
            checkpoint["optimizer_states"] = [number_by_module(*each, self) for each in states]
