"""Every row of the model family on a GPU that is not there: nothing mixes devices or types, or waits for the device."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.modules.family import Case, with_others
from tests.simulated_gpu import simulated_gpu

SAMPLERS = ("ddim", "ddpm", "dpmpp_2m")


@pytest.mark.parametrize(("case", "half"), with_others([torch.bfloat16, torch.float16]), ids=str)
def test_a_row_runs_in_every_precision_without_waiting_or_float64(
    case: Case, half: torch.dtype, autoencoder: Path
) -> None:
    model, condition = case.model(autoencoder).train(), case.condition()
    generate = partial(model.generate, index=torch.arange(2), guidance_scale=case.guidance_scale, **condition)
    bound = partial(model.bits_per_dim, case.batch["images"][:2, 0], index=torch.arange(2), **condition)
    waits: list[Counter[str]] = []
    bound_waits: list[Counter[str]] = []
    for autocast, steps in {None: 1, half: 2}.items():
        with simulated_gpu(autocast, float64=False) as gpu:
            if autocast is None:
                model.to("cuda")
                batch = {name: values.to("cuda") for name, values in case.batch.items()}
                model.batch_loss(batch)  # tables, and the autoencoder, are moved once
                gpu.waits.clear()
            loss = model.batch_loss(batch)
            assert not gpu.waits
            assert autocast is None or autocast in gpu.products
            assert (loss.device.type, loss.dtype, loss.isfinite().item()) == ("cuda", torch.float32, True)
            # Samplers see the same types in every precision: the denoiser's output is made float32.
            for sampler in SAMPLERS if autocast is None else (case.row["sampler"],):
                gpu.waits.clear()
                images = generate(steps=steps, sampler=sampler)
                waits.append(gpu.waits.copy())
                assert (images.shape, images.device.type) == ((2, 3, 8, 8), "cuda")
            if case.row["latent"] == "pixels":
                gpu.waits.clear()
                total = bound(steps=steps).total
                bound_waits.append(gpu.waits.copy())
                assert total.isfinite().all()
    # What is given is moved, and tables are made, whatever the number of steps.
    assert waits == waits[:1] * len(waits)
    assert bound_waits == bound_waits[:1] * len(bound_waits)
