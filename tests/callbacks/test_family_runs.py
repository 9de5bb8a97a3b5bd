"""Every row of the model family through the trainer: it fits, goes on from a checkpoint, and is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vfs import EMACallback, FIDCallback
from tests.callbacks.conftest import Patterns
from tests.modules.family import Case, cases


def three_classes() -> Patterns:
    """Sets of 4 RGB images of 3 training classes."""
    return Patterns(classes=7, channels=3, split_fractions=(0.42, 0.15, 0.43))


def trainer_of(folder: Path, steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=steps,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, gradient_clip_val=1.0,
        callbacks=[
            EMACallback(decay=0.5, warmup=False),
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1),
            *callbacks,
        ],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(val|test)/loss is left out")  # of class-conditional models
@pytest.mark.parametrize("case", cases(), ids=str)
def test_it_fits_resumes_and_is_evaluated(case: Case, autoencoder: Path, tmp_path: Path, tiny: str) -> None:
    data = three_classes()
    assert data.split("train").num_classes == 3
    straight = case.model(autoencoder)
    trainer_of(tmp_path / "straight", 4).fit(straight, datamodule=data)
    resumed = case.model(autoencoder)
    half = tmp_path / "straight" / "step=2.ckpt"
    evaluation = FIDCallback(
        every_n_epochs=None, feature_extractor=tiny, num_images=8, few_shot_way=2, steps=3,
        splits=["in"] if case.row["encoder"] == "class_label" else ["in", "out"],
        sampler=case.row["sampler"], guidance_scale=case.guidance_scale, record=tmp_path / "fid.json",
    )  # fmt: skip
    trainer = trainer_of(tmp_path / "resumed", 4, evaluation)
    trainer.fit(resumed, datamodule=three_classes(), ckpt_path=half)
    for (name, there), here in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(there, here), name
    figures = trainer.test(resumed, datamodule=three_classes(), verbose=False)[0]
    assert 0 <= figures[f"few_shot_accuracy[{tiny}]/in"] <= 1
    assert figures[f"fid[{tiny}]/in"] > 0
    recorded = json.loads((tmp_path / "fid.json").read_text())
    assert recorded["sampling"]["guidance"] == (2.0 if case.row["guidance"] == "on" else None)
    assert (recorded["model"]["autoencoder_sha256"] is None) == (case.row["latent"] == "pixels")
