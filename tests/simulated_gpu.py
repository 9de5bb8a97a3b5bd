"""A GPU that is not there: tensors that say `cuda`, follow its rules and keep their values on the CPU.

An operation on tensors of both devices raises, as on a GPU, and autocast is CUDA's. What would make the host wait for
the device is counted. A process group on `cuda:gloo` gathers these tensors and no others, as NCCL does. Unlike torch's
fake tensors they have values, and they take a tenth of the time. The backward pass cannot run: autograd asks for a real
device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda:0")
_HOST = torch.device("cpu")

_COPIES = ("aten._to_copy", "aten.copy_")
_READS = (
    "aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.bincount",
)  # fmt: skip
_INDEXING = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_")
_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution")

_CUDA: dict[str, Callable[..., Any]] = {
    "_lazy_init": lambda: None,
    "synchronize": lambda device=None: None,
    "current_device": lambda: 0,
    "get_device_name": lambda device=None: "simulated GPU",
    "get_device_capability": lambda device=None: (8, 0),
}


class OnGPU(Tensor):
    """A tensor of the simulated GPU; `values` are its values, on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnGPU:
        strides, offset = values.stride(), values.storage_offset()
        made: OnGPU = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.shape, strides=strides, storage_offset=offset, dtype=values.dtype, device=GPU
        )
        made.values = values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} is given a tensor of the simulated GPU, outside of `simulated_gpu`.")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.values!r})"


class SimulatedGPU(TorchDispatchMode):
    """What `simulated_gpu` turns on.

    Attributes:
        waits: operations that make the host wait, by name: they read values, or copy between host and device.
        products: types that matrix products and convolutions were computed in.
        collectives: collectives by name.
    """

    def __init__(self, float64: bool) -> None:
        super().__init__()
        self.float64 = float64
        self.waits: Counter[str] = Counter()
        self.products: set[torch.dtype] = set()
        self.collectives: Counter[str] = Counter()
        self._host_group: dist.ProcessGroup | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not torch.is_inference_mode_enabled(), "inference mode passes wrappers by: take torch.no_grad"
        given: dict[int, Tensor] = {}

        def on_host(x: Any) -> Any:
            if isinstance(x, torch.device):
                return _HOST
            values = x.values if isinstance(x, OnGPU) else x
            if isinstance(x, Tensor):
                given[id(values)] = x
            return values

        if func.namespace == "c10d":
            args = self._collective(func, args)
        args, kwargs, target = _map(on_host, args), _map(on_host, kwargs or {}), (kwargs or {}).get("device")
        on_gpu = [isinstance(x, OnGPU) for x in given.values()]
        to_gpu = any(on_gpu) if target is None else torch.device(target).type == "cuda"
        name = str(func.overloadpacket)
        if any(on_gpu) and name not in _COPIES and any(x.ndim and not isinstance(x, OnGPU) for x in given.values()):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu.")
        self._note(name, list(given.values()), on_gpu, to_gpu)
        result = func(*args, **kwargs)
        # An operation in place gives back what it was given.
        return _map(lambda x: given[id(x)] if id(x) in given else self._made(x) if to_gpu else x, result)

    def _collective(self, func: Any, args: Any) -> Any:
        """Arguments of a collective, whose group has gloo for tensors of the GPU alone; another one serves them."""
        if self._host_group is None:
            self._host_group = dist.new_group(backend="gloo")
        self.collectives.update([func.__name__])

        def in_host_group(x: Any) -> Any:
            # The tensor of a barrier is the group's own.
            if isinstance(x, Tensor) and not isinstance(x, OnGPU) and "barrier" not in func.__name__:
                raise RuntimeError(f"{func}: No backend type associated with device type cpu")
            return self._host_group.boxed() if isinstance(x, torch.ScriptObject) and _is_group(x) else x  # type: ignore[union-attr]

        return _map(in_host_group, args)

    def _note(self, name: str, given: list[Tensor], on_gpu: list[bool], to_gpu: bool) -> None:
        between = name in _COPIES and len({*on_gpu, to_gpu}) > 1
        by_mask = name in _INDEXING and any(x.dtype == torch.bool for x in given[1:])
        if between or (any(on_gpu) and (name in _READS or by_mask)):
            self.waits[name] += 1
        if any(on_gpu) and name in _PRODUCTS:
            self.products.add(given[-1].dtype)

    def _made(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.dtype == torch.float64 and not self.float64:
            raise TypeError("The simulated GPU has no float64, as Apple's MPS.")
        return OnGPU(x)


def _is_group(x: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(x._type())


def _map(function: Callable[[Any], Any], x: Any) -> Any:
    """The function of everything in nested lists, tuples and dictionaries. torch's tree_map takes most of the time."""
    if isinstance(x, list | tuple):
        return type(x)([_map(function, part) for part in x])
    return {key: _map(function, part) for key, part in x.items()} if isinstance(x, dict) else function(x)


@contextmanager
def simulated_gpu(autocast: torch.dtype | None = None, float64: bool = True) -> Iterator[SimulatedGPU]:
    """Inside, `cuda` is a device.

    Args:
        autocast: type of mixed precision.
        float64: whether the device has it; MPS, for one, has not.
    """
    # As in torch's FakeTensorMode: no driver is asked for, and tensors of plain numbers are made on the CPU and moved.
    torch._C._ensureCUDADeviceGuardSet()
    lifted, overwritten = (
        torch._C._only_lift_cpu_tensors(),
        torch.__future__.get_overwrite_module_params_on_conversion(),
    )
    torch._C._set_only_lift_cpu_tensors(True)
    # Module.to would keep the Python object of a parameter, which knows nothing of values.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    # torch.autocast does nothing for CUDA where there is none.
    torch.set_autocast_enabled("cuda", autocast is not None)
    torch.set_autocast_dtype("cuda", autocast or torch.float16)
    try:
        with mock.patch.multiple("torch.cuda", **_CUDA), SimulatedGPU(float64) as mode:
            yield mode
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
        torch.clear_autocast_cache()
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
        torch._C._set_only_lift_cpu_tensors(lifted)
