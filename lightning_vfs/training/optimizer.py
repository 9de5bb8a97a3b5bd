"""AdamW, or Muon with AdamW, with warm-up and cosine decay, by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from lightning_vfs.core.checks import check_choices, check_fraction
from lightning_vfs.core.errors import CheckpointError, ConfigError
from lightning_vfs.training.muon import MuonAdamW, block_matrices


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), or Muon for matrices, with linear warm-up and cosine decay to zero.

    Args:
        name: `adamw`; or `muon`: matrices in the networks' blocks are updated by Muon (Jordan et al. 2024), scaled so
            that its updates are as large as AdamW's and both take the same learning rate (Liu et al. 2025, arXiv
            2502.16982, section 2.2), all other parameters by AdamW.
        learning_rate: its highest value.
        betas: decay of the averages of the gradient and of its square.
        weight_decay: of weight matrices; biases, norms, tokens and positions have none.
        warmup_steps: optimizer steps over which the rate rises from zero.
        decay_steps: optimizer steps after which the rate is zero; by default the trainer's number of steps.
        momentum: of Muon, decay of the average of the gradient.

    Raises:
        ConfigError: a value is not allowed.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_steps: int | None = None
    name: Literal["adamw", "muon"] = "adamw"
    momentum: float = 0.95

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        check_choices(self)
        check_fraction(self, "momentum")
        if self.learning_rate <= 0:
            raise ConfigError(f"OptimizerConfig.learning_rate is {self.learning_rate}; it must be above 0.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"OptimizerConfig.betas is {self.betas}; it must be two numbers of at least 0, below 1.")
        if self.weight_decay < 0:
            raise ConfigError(f"OptimizerConfig.weight_decay is {self.weight_decay}; it must be at least 0.")
        if self.warmup_steps < 0:
            raise ConfigError(f"OptimizerConfig.warmup_steps is {self.warmup_steps}; it must be at least 0.")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ConfigError(
                f"OptimizerConfig.decay_steps is {self.decay_steps}; it must be above warmup_steps, "
                f"{self.warmup_steps}."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OptimizerConfig:
        """Build from plain values, as `to_dict` gives them.

        Raises:
            ConfigError: an unknown name, or a value that is not allowed.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ConfigError(f"OptimizerConfig has no {', '.join(unknown)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` takes them."""
        return asdict(self) | {"betas": list(self.betas)}


def build_adamw(module: nn.Module, config: OptimizerConfig, fused: bool = True) -> torch.optim.AdamW:
    """AdamW over the module's parameters; only matrices decay."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim >= 2 and name.split(".")[-1] == "weight"]
    chosen = {id(p) for p in matrices}
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": [p for _, p in trained if id(p) not in chosen], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def build_optimizer(module: nn.Module, config: OptimizerConfig, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer of a configuration over the module's parameters; only matrices decay.

    Raises:
        ConfigError: Muon, for a module that has no matrices in blocks.
    """
    adamw = build_adamw(module, config, fused)
    if config.name == "adamw":
        return adamw
    matrices = block_matrices(module)
    if not matrices:
        raise ConfigError(
            "OptimizerConfig.name is 'muon', which is for the matrices of the networks' blocks, but these networks "
            "have none: set name to 'adamw'."
        )
    muon = torch.optim.Muon(
        matrices,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    by_muon = {id(matrix) for matrix in matrices}
    for group in adamw.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in by_muon]
    return MuonAdamW(muon, adamw)


def apply_settings(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR, config: OptimizerConfig
) -> None:
    """Give an optimizer of `build_optimizer` and its schedule these settings; moments and steps stay as they are."""
    *decaying, last = optimizer.param_groups
    for group in (*decaying, last):
        own = {"betas": config.betas} if "betas" in group else {"momentum": config.momentum}
        group |= {"initial_lr": config.learning_rate, "weight_decay": config.weight_decay, **own}
    last["weight_decay"] = 0.0
    scheduler.base_lrs = [config.learning_rate for _ in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["lr"] = config.learning_rate * factor(scheduler.last_epoch)


def check_same_optimizer(trained: Mapping[str, Any], config: OptimizerConfig) -> None:
    """Refuse to resume a run with another optimizer, for which its state says nothing.

    Args:
        trained: plain values of the run's OptimizerConfig.

    Raises:
        CheckpointError: their names differ.
    """
    name = trained.get("name", "adamw")
    if name != config.name:
        raise CheckpointError(
            f"The checkpoint was trained with the optimizer {name!r}, but this run has {config.name!r}, which cannot "
            f"continue from its state: set --model.optimizer.name {name}."
        )


IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
"""Options of an optimizer that say how it computes, not what it computes."""


def keep_implementation(optimizer: torch.optim.Optimizer) -> None:
    """Keep the run's implementation, not the checkpoint's, when an optimizer loads a state.

    Its state also gets the memory format of the parameters, which fused kernels rely on.
    """

    def own(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = [
            group | {name: ours[name] for name in IMPLEMENTATION if name in ours}
            for group, ours in zip(state["param_groups"], optimizer.param_groups, strict=False)
        ]
        return state | {"param_groups": groups}

    @torch.no_grad()
    def lay_out(optimizer: torch.optim.Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if not isinstance(value, Tensor) or value.shape != parameter.shape:
                    continue
                if value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)

    optimizer.register_load_state_dict_pre_hook(own)
    optimizer.register_load_state_dict_post_hook(lay_out)


def scaler_of(trainer: pl.Trainer) -> torch.amp.GradScaler | None:
    """The gradient scaler of a run in mixed float16."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def handles_scaling(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer, being fused, takes `grad_scale` and `found_inf`."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def skips_by_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `found_inf` of 1 makes a step change nothing. Fused SGD does not always: its first momentum is lost."""
    return isinstance(optimizer, MuonAdamW) or (isinstance(optimizer, torch.optim.Adam) and handles_scaling(optimizer))


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Euclidean norm of the gradients of all that an optimizer steps, (); replicated where they are sharded."""
    parameters = _parameters(optimizer)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    norm = get_total_norm(gradients)
    return norm.redistribute(placements=[Replicate()] * norm.device_mesh.ndim) if isinstance(norm, DTensor) else norm


def local(value: Tensor) -> Tensor:
    """A replicated tensor as this rank has it."""
    return value.to_local() if isinstance(value, DTensor) else value


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float, algorithm: str, norm: Tensor) -> None:
    """Clip gradients by value, or by their norm (), which is known."""
    if algorithm == "value":
        clip_grad_value_(_parameters(optimizer), limit)
    else:
        clip_grads_with_norm_(_parameters(optimizer), limit, norm)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def number_by_module(state: dict[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """An optimizer's state whose parameters are numbered as in `module.parameters()`, not group after group.

    An optimizer accepts both, but strategies that shard use the module's order.
    """
    stored = [i for group in state["param_groups"] for i in group["params"]]
    to_ours = dict(zip(stored, _numbers(optimizer, module), strict=True))
    groups = [group | {"params": [to_ours[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {to_ours[i]: values for i, values in state["state"].items()}, "param_groups": groups}


def check_numbering(state: dict[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Refuse a state in which a strategy that shards would take a parameter's moments for another's.

    Raises:
        CheckpointError: the parameters are not numbered as by `number_by_module`.
    """
    if [i for group in state["param_groups"] for i in group["params"]] != _numbers(optimizer, module):
        raise CheckpointError(
            "The checkpoint's optimizer numbers its parameters group after group, as version 0.1.0 did, and a sharded "
            "run cannot tell them apart: resume it in one process for a step, and resume from what that saves."
        )


def _numbers(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[int]:
    """Place in `module.parameters()` of the optimizer's parameters, group after group; those of no module are last."""
    number = {id(parameter): i for i, parameter in enumerate(module.parameters())}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [number.setdefault(id(parameter), len(number)) for parameter in parameters]


def warmup_cosine(step: int, warmup_steps: int, decay_steps: int) -> float:
    """Factor of the learning rate at a step: linear from 0 to 1, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, decay_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress))
