"""A boolean on the device that the host reads later, so that it does not wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class HostFlag:
    """A boolean tensor () on its way from the device to the host; reading it waits until it has arrived.

    Attributes:
        is_late: it has not arrived, and is better read after the device has more to do.
    """

    def __init__(self, flag: Tensor) -> None:
        self.is_late = self._comes_late(flag)
        self._flag, self._arrival = flag, None
        if flag.is_cuda:
            self._flag = torch.empty_like(flag, device="cpu", pin_memory=True).copy_(flag, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def __bool__(self) -> bool:
        if self._arrival is not None:
            self._arrival.synchronize()
        return bool(self._flag.cpu().numpy())

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which an event cannot be part of: the flag when it is there."""
        return {"is_late": False, "_flag": torch.tensor(bool(self)), "_arrival": None}

    @staticmethod
    def _comes_late(flag: Tensor) -> bool:
        return flag.is_cuda
