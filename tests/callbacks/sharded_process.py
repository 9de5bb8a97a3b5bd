"""One of the two processes of test_sharding.py: `python sharded_process.py <rank> <port> <folder>`."""

import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from conftest import CONFIG, TINY, Patterns, TinyExtractor
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from lightning_vfs import VFSDDPM, EMACallback, FIDCallback, SampleGridCallback, VFSConfig
from lightning_vfs.modules import OptimizerConfig

SHARDED = {
    "sets": {"set_size": 4, "image_size": 8, "channels": 1},
    "encoder": {**CONFIG.to_dict()["encoder"], "dropout": 0.1, "context_dropout": 0.3},
    "denoiser": {**CONFIG.to_dict()["denoiser"], "depth": 2, "dropout": 0.1},
    "diffusion": {"timesteps": 10, "prediction": "x_0"},
}


def fit(folder, ckpt_path=None, model_options=(), optimizer="adamw", **options):
    """Six optimizer steps of two batches each, over epochs of five batches; its figures, and checkpoints of 3 and 6."""
    pl.seed_everything(0)
    settings = OptimizerConfig(name=optimizer, learning_rate=1e-3, warmup_steps=2, decay_steps=100)
    model = VFSDDPM(VFSConfig.from_dict(SHARDED), settings, **dict(model_options))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=6,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=2,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[
            FIDCallback(every_n_epochs=2, feature_extractor=TINY, num_images=31, few_shot_way=5, steps=2),
            SampleGridCallback(every_n_epochs=2, num_classes=2, num_images=2, steps=2, guidance_scale=2.0),
            EMACallback(decay=0.8, warmup=False),
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ],
        **options,
    )
    data = Patterns(batch_size=4 // trainer.world_size, sets_per_epoch=20)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def main():
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    register_tiny()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}

    def sharded(name, ckpt_path=None, **more):
        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        options = {"devices": 2, "strategy": strategy, "plugins": [LightningEnvironment()]}
        return fit(folder / name, ckpt_path, {"checkpoint_activations": True}, **options, **more)

    if "MUON" in os.environ:
        sharded("muon", optimizer="muon")
        sharded("muon resumed", folder / "muon" / "step=2.ckpt", optimizer="muon")
        return
    figures = sharded("sharded")
    sharded("resumed", folder / "sharded" / "step=2.ckpt")
    sharded("from single", folder / "single" / "step=2.ckpt")
    sharded("bf16", folder / "sharded" / "step=5.ckpt", precision="bf16-true")
    (folder / f"{rank}.json").write_text(json.dumps(figures))


def register_tiny():
    if TINY not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(TINY, TinyExtractor)


if __name__ == "__main__":
    main()
