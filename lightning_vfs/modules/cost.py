"""What a training step costs in operations and memory, counted from shapes: nothing is computed."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lightning_vfs.core.config import VFSConfig
from lightning_vfs.modules.vfsddpm import VFSDDPM
from lightning_vfs.training.blocks import NetworkBlock
from lightning_vfs.training.optimizer import OptimizerConfig, build_adamw, clip_gradients, gradient_norm


@functools.cache
def step_flops(config: VFSConfig, sets: int = 1, set_size: int | None = None) -> int:
    """Floating point operations of a training step, forward and backward; a multiplication with an addition is two.

    Matrix products, convolutions and attention of the model's losses, each as often as the mathematics asks for: what
    `checkpoint_activations` and fused attention compute again does not count. Left out are operations on single
    elements, the optimizer, and the frozen autoencoder of a model of latents.

    Args:
        config: the model's configuration.
        sets: sets in the batch (b).
        set_size: images per set (n); the configuration's by default.
    """
    model = _without_memory(config).to("meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _loss(model, sets, set_size or config.sets.set_size).backward()
    return counter.get_total_flops()


def step_operations(config: VFSConfig) -> int:
    """Operations that a training step hands to the device, views apart; without compilation.

    Loss, backward pass, clipping by the norm, AdamW and the average of the weights. Their number does not depend on the
    batch: times what the host needs for one of them, it is the least time of a step, however fast the device. An
    operation on a list of tensors counts once.
    """
    model = _without_memory(config)
    with FakeTensorMode(allow_non_fake_inputs=True), _Operations() as loss:
        model.to_empty(device="cpu")
        loss.count = 0
        _loss(model, 1, config.sets.set_size).backward()
    return loss.count + _update_operations(model)


def _update_operations(model: nn.Module) -> int:
    """Of clipping, AdamW and the average, on as many parameters, of one number each: fake ones are taken one by one."""
    module = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in model.parameters())
    optimizer, averages = build_adamw(module, OptimizerConfig()), [torch.zeros(1) for _ in module]
    for parameter in module:
        parameter.grad = torch.zeros(1)
    optimizer.step()  # the first makes room for the moments
    with torch.no_grad(), _Operations() as update:
        clip_gradients(optimizer, 1.0, "norm", gradient_norm(optimizer))
        optimizer.step()
        get_ema_multi_avg_fn(0.99)(averages, list(module), 1)
    return update.count


class _Operations(TorchDispatchMode):
    """Counts operations other than views."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Fake tensors ask for their device by an operation of `prim`.
        self.count += not func.is_view and func.namespace != "prim"
        return func(*args, **(kwargs or {}))


def activation_bytes(
    config: VFSConfig, sets: int = 1, precision: torch.dtype = torch.float32, checkpoint_activations: bool = False
) -> int:
    """Bytes that a training step keeps from its forward pass for its backward, besides weights and gradients.

    Every storage that autograd saves counts once, with fused attention and without compilation. With
    `checkpoint_activations` these are the blocks' inputs, and the largest block's own activations are added, which the
    backward pass holds while it goes through that block. Buffers of single operations are left out.

    Args:
        config: the model's configuration.
        sets: sets in the batch (b).
        precision: float32; or bfloat16 for autocast as CPUs have it (CUDA's keeps more in float32, such as the
            outputs of norms).
        checkpoint_activations: as of VFSDDPM.
    """
    saved = _saved_bytes(config, sets, precision, checkpoint_activations)
    if not checkpoint_activations:
        return saved.total()
    of_blocks = _saved_bytes(config, sets, precision, False)
    return saved.total() + max(size for block, size in of_blocks.items() if block is not None)


def _saved_bytes(
    config: VFSConfig, sets: int, precision: torch.dtype, checkpoint_activations: bool
) -> Counter[NetworkBlock | None]:
    """Bytes that autograd saves in each block, and outside of blocks (None)."""
    sizes: Counter[NetworkBlock | None] = Counter()
    seen: set[torch.UntypedStorage] = set()
    current: list[NetworkBlock | None] = [None]

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in seen:
            seen.add(storage)
            sizes[current[0]] += storage.nbytes()
        return tensor

    model = _without_memory(config, checkpoint_activations)
    for module in model.modules():
        if isinstance(module, NetworkBlock):
            module.register_forward_pre_hook(lambda block, _: current.__setitem__(0, block))
            module.register_forward_hook(lambda *_: current.__setitem__(0, None))
    # Fake tensors have a device, by which attention chooses its kernel, but no memory; those on meta have neither.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        seen |= {tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())}
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast:
            _loss(model, sets, config.sets.set_size)
    return sizes


def _without_memory(config: VFSConfig, checkpoint_activations: bool = False) -> VFSDDPM:
    """The model in training, with parameters that have shapes and no values."""
    with torch.device("meta"):
        return VFSDDPM(config, checkpoint_activations=checkpoint_activations).train()


def _loss(model: VFSDDPM, sets: int, set_size: int) -> Tensor:
    """Loss of a batch without values, on the model's device."""
    config, device = model.config, next(model.parameters()).device

    def images(channels: int, size: int) -> Tensor:
        return torch.empty(sets, set_size, channels, size, size, device=device)

    index = torch.zeros(sets, dtype=torch.int64, device=device)
    x_set = images(config.sets.channels, config.sets.image_size)
    latents = images(config.denoiser_channels, config.denoiser_size) if config.latent.autoencoder else None
    model.diffusion = model.diffusion.on(x_set)
    random_numbers = model._random_numbers(set_size, index)
    losses, kl = model.losses(x_set, index, latents=latents, label=index, **random_numbers)
    return losses.mean() if kl is None else losses.mean() + config.encoder.kl_weight * kl.mean()
