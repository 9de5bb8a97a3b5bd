"""What only a GPU can show; run with `make test-gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_vfs import VFSDDPM
from lightning_vfs.core.errors import NonFiniteLossError
from lightning_vfs.data import FolderSets
from tests.conftest import tiny_config
from tests.training.nonfinite_ranks import ByContrast, data_of, model_of, write_images
from tests.training.nonfinite_ranks import trainer_of as anomaly_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("compiled", [False, True])
def test_fit_on_cuda(tmp_path: Path, image_folder: Path, precision: str, compiled: bool) -> None:
    data = FolderSets(
        str(image_folder), image_size=8, batch_size=2, sets_per_epoch=8, eval_sets=2, split_fractions=(0.5, 0.25, 0.25)
    )
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cuda", devices=1, precision=precision, gradient_clip_val=1.0,
        max_steps=4, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(VFSDDPM(tiny_config(), compile=compiled), datamodule=data)
    assert trainer.global_step == 4
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_images_are_those_of_the_cpu(tiny_model) -> None:
    model = tiny_model()
    support = torch.rand(2, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    on_cpu = model.sample(support, num_images=3, steps=4)
    on_cuda = model.cuda().sample(support, num_images=3, steps=4)
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=5e-3, rtol=0)


FAMILY = {
    "default": {},
    "lag, codes, guidance, shots": {
        "sets": {"random_shots": True},
        "encoder": {"pool": "patches", "context": "variational_discrete", "context_dropout": 0.1},
        "denoiser": {"conditioning": "lag"},
        "diffusion": {"timestep_sampling": "loss_second_moment", "min_snr_gamma": 5.0},
    },
    "unets": {
        "encoder": {"architecture": "unet", "pool": "mean", "channels": 16, "channel_mult": (1, 2)},
        "denoiser": {"architecture": "unet", "channels": 16, "channel_mult": (1, 2), "heads": 2},
    },
    "vit": {"encoder": {"architecture": "vit", "pool": "mean_patch", "context": "variational"}},
}


@pytest.mark.parametrize("parts", FAMILY.values(), ids=FAMILY)
def test_a_step_copies_nothing_between_host_and_device(tiny_model, parts: dict) -> None:
    model = tiny_model(**parts).cuda().train()
    batch = {"images": torch.zeros(2, 6, 3, 8, 8, device="cuda"), "index": torch.arange(2, device="cuda")}
    model.batch_loss(batch).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.batch_loss(batch).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WithoutWaiting(ByContrast):
    """After the first step, one that makes the host wait for the GPU is an error."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with self.waiting_refused():
            return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        with self.waiting_refused():
            super().on_before_optimizer_step(optimizer)

    @contextmanager
    def waiting_refused(self) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error" if self.trainer.global_step else "default")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_bad_step_changes_no_weight_and_is_noticed_without_waiting(tmp_path: Path) -> None:
    images, cuda = write_images(tmp_path), {"accelerator": "cuda", "devices": 1}
    model, trainer = model_of(WithoutWaiting, skip=True), anomaly_trainer(**cuda)
    trainer.fit(model, datamodule=data_of(images, 5))
    assert trainer.callback_metrics["train/skipped_steps"] == 1
    before, stopped = model_of(), model_of()
    anomaly_trainer(max_steps=1, **cuda).fit(before, datamodule=data_of(images, 3))
    with pytest.raises(NonFiniteLossError, match=r"optimizer step 2 \(epoch 0\) is inf, by 1 of its 2 sets:\n  blank "):
        anomaly_trainer(**cuda).fit(stopped, datamodule=data_of(images, 3))
    for ours, theirs in zip(stopped.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
