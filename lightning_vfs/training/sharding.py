"""Models whose parameters are sharded over ranks: FSDP2, by Lightning's ModelParallelStrategy.

Lightning loads and saves the model and the optimizer of such a run; what else is in a checkpoint, above all the average
of weights, is gathered and cut here.
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
"""What is called on a model from outside and needs the parameters that are in no network of it; none calls another."""


_WEIGHTS = ("state_dict", "current_model_state")
"""Parts of a checkpoint that hold weights: the model's, or their average and the model's."""


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that shards in a way that a model of ours cannot be trained or saved.

    Raises:
        ConfigError: FSDP 1, tensor parallelism, or checkpoints in pieces.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ConfigError(
            "FSDPStrategy is FSDP 1, in which Lightning does not clip gradients by their norm: take FSDP 2, --config "
            "configs/scale/fsdp.yaml (--trainer.strategy lightning.pytorch.strategies.ModelParallelStrategy)."
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if strategy._save_distributed_checkpoint:
        raise ConfigError(
            "ModelParallelStrategy would save checkpoints in pieces, which only as many ranks can load: set "
            "--trainer.strategy.init_args.save_distributed_checkpoint false, which gathers them into one file."
        )
    if strategy.device_mesh["tensor_parallel"].size() > 1:
        raise ConfigError(
            f"ModelParallelStrategy would split every layer over {strategy.device_mesh['tensor_parallel'].size()} "
            "ranks (tensor parallelism), for which these models are not made: set "
            f"--trainer.strategy.init_args.data_parallel_size {strategy.world_size} and "
            "--trainer.strategy.init_args.tensor_parallel_size 1, which shard parameters over the ranks."
        )


def shard(model: nn.Module, mesh: DeviceMesh, compile: bool = False) -> None:
    """Cut every parameter of a model over the ranks of a mesh, gathered when its block computes (FSDP2).

    Blocks are cut one by one, then the networks that they are in, then what is left. They are also compiled one by one:
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
    """Whole tensors on the CPU in place of shards; collective.

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
    """Shards in place of whole tensors, as the parameters of a model are cut."""
    parameters = dict(model.named_parameters())

    def as_there(name: str, value: Tensor) -> Tensor:
        there = parameters.get(name)
        if not isinstance(there, DTensor) or isinstance(value, DTensor):
            return value
        # Every rank has read the same file: nothing has to be sent.
        return distribute_tensor(value.to(there.device), there.device_mesh, there.placements, src_data_rank=None)

    return {name: as_there(name, value) for name, value in state.items()}


class ShardableModule(pl.LightningModule):
    """A LightningModule that can be sharded, and whose checkpoints do not tell over how many ranks it was."""

    @property
    def attached_trainer(self) -> pl.Trainer | None:
        """The trainer that it is in, if it is in one."""
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
        """Where the model is sharded: give a checkpoint its weights back, cut as the model's are.

        Raises:
            CheckpointError: the optimizer's state is one that cannot be sharded.
        """
        if not is_sharded(self):
            return
        # Lightning has loaded the weights of the file, and taken them out of the checkpoint.
        whole = read_checkpoint(cast(Path, self.trainer.ckpt_path))
        for name in _WEIGHTS:
            if name in whole:
                checkpoint[name] = cut(whole[name], self)
        for state, optimizer in zip(whole.get("optimizer_states", ()), self.trainer.optimizers, strict=False):
            check_numbering(state, optimizer, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gather weights, where the model is sharded; number the optimizer's parameters alike in any case."""
        if is_sharded(self):
            for name in _WEIGHTS:
                if name in checkpoint:
                    checkpoint[name] = gathered(checkpoint[name], keep=self.trainer.is_global_zero)
        elif checkpoint.get("optimizer_states"):
            states = zip(checkpoint["optimizer_states"], self.trainer.optimizers, strict=True)
            checkpoint["optimizer_states"] = [number_by_module(*each, self) for each in states]
