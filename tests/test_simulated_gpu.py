"""The simulated GPU refuses and counts what the tests that use it rely on."""

from __future__ import annotations

import pytest
import torch

from tests.simulated_gpu import simulated_gpu


def test_it_has_values_and_counts_waits() -> None:
    with simulated_gpu() as gpu:
        x = torch.arange(3, device="cuda") + torch.ones(3, dtype=torch.int64, device="cuda")
        x[0] = 5
        assert x.device.type == "cuda"
        assert not gpu.waits
        assert x.sum().item() == 10
        assert gpu.waits == {"aten._local_scalar_dense": 1}
        assert x[x > 2].cpu().tolist() == [5, 3]
        assert gpu.waits == {"aten._local_scalar_dense": 1, "aten.index": 1, "aten._to_copy": 1}
        assert torch.ones(2).to("cuda").device.type == torch.tensor(2, device="cuda").device.type == "cuda"
        assert gpu.waits["aten._to_copy"] == 3
        torch.ones(3).copy_(x)
        assert gpu.waits["aten.copy_"] == 1


def test_it_refuses_tensors_of_both_devices_and_types_that_do_not_go_together() -> None:
    with simulated_gpu():
        x = torch.ones(3, 3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3, 3)
        with pytest.raises(RuntimeError, match="dtype"):
            x @ x.bfloat16()
        assert (x + torch.tensor(1)).device.type == "cuda"  # a number of the host, which a GPU takes as well


def test_it_may_lack_float64() -> None:
    with simulated_gpu(float64=False):
        x = torch.ones(3, device="cuda")
        for make in (x.double, lambda: torch.ones(3).double().to("cuda"), lambda: x.sum(dtype=torch.float64)):
            with pytest.raises(TypeError, match="no float64"):
                make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_that_of_cuda(dtype: torch.dtype) -> None:
    with simulated_gpu(dtype) as gpu:
        layer = torch.nn.Linear(3, 3).to("cuda")
        y = layer(torch.ones(2, 3, device="cuda"))
        assert y.dtype == dtype
        assert y.exp().dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert layer(torch.ones(2, 3, device="cuda")).dtype == torch.float32
    assert gpu.products == {dtype, torch.float32}
    assert not torch.is_autocast_enabled("cuda")
