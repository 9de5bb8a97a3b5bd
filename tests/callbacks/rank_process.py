"""One of the processes of test_ranks.py: `python rank_process.py <rank> <port> <folder>`."""

import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from conftest import TINY, Painter, Patterns, TinyExtractor
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch_fidelity.registry import register_feature_extractor

from lightning_vfs.callbacks import EMACallback, FIDCallback, SampleGridCallback
from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.core.files import hash_of
from lightning_vfs.core.sampling_config import SamplingConfig
from lightning_vfs.evaluation import EvaluationPlan, evaluate
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.evaluation.split import SplitEvaluation
from lightning_vfs.metrics import FidelityMetric, ImageFeatures
from lightning_vfs.metrics.fidelity import FidelityOptions


def numbers(figures):
    """Values, and replicates by their number."""
    found = {name: figure.value for name, figure in figures.items()}
    several = {name: figure.replicates for name, figure in figures.items() if figure.replicates}
    return found | {f"{name} {i}": value for name, values in several.items() for i, value in enumerate(values)}


def split_figures(rank, world_size, num_images, num_real):
    plan = EvaluationPlan(
        num_images=num_images,
        num_real_images=num_real,
        few_shot_way=None if num_real else (2, 5),
        options=FidelityOptions(kid_subset_size=20, isc_splits=2),
    )
    metrics = ("fid",) if num_real else ("fid", "kid", "isc", "prc")
    evaluation = SplitEvaluation("test", Patterns().split("test"), ImageFeatures(TINY, metrics), plan)
    shard = RankShard(batch_size=7, device=torch.device("cpu"))
    assert (shard.rank, shard.world_size) == (rank, world_size)
    # Twice: the second time with the real features that were kept.
    results = [evaluation.evaluate(Painter(), 3, shard) for _ in range(2)]
    return [numbers(result.figures) for result in results]


def evaluated():
    few = {"num_images": 31, "splits": ["out"], "feature_extractor": TINY, "few_shot_way": 5, "batch_size": 7}
    plan = EvaluationPlan(**few, sampling=SamplingConfig(2))
    record = evaluate(Painter(), Patterns(), plan)
    sampled = record.splits["out"].sampled_images or {}
    described = int(hash_of(*sampled, *(image.sha256 for image in sampled.values()))[:7], 16)
    return numbers(record.figures) | {"ranks": record.environment.world_size, "described images": described}


def error_of_an_empty_metric():
    try:
        FidelityMetric(ImageFeatures(TINY)).compute()
    except EvaluationError as error:
        return str(error)


def fit(folder, **kwargs):
    best = ModelCheckpoint(folder, monitor=f"fid[{TINY}]/out")
    fid = FIDCallback(feature_extractor=TINY, num_images=31, few_shot_way=5, steps=2)
    grids = SampleGridCallback(num_classes=2, num_images=2, steps=2)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[EMACallback(decay=0.5, warmup=False), fid, grids, best],
        **kwargs,
    )
    trainer.fit(Painter(), datamodule=Patterns(batch_size=4 // trainer.world_size))
    figures = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {"figures": figures, "best": best.best_model_score.item(), "steps": trainer.global_step}


def main():
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    register_feature_extractor(TINY, TinyExtractor)
    found = {}
    for world_size in (1, 2, 3):
        if rank < world_size:
            store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
            found[f"uneven shares, {world_size}"] = split_figures(rank, world_size, 31, None)
            found[f"ranks without images, {world_size}"] = split_figures(rank, world_size, 2, 2)
            found[f"evaluate, {world_size}"] = evaluated() if world_size < 3 else None
            found[f"error, {world_size}"] = error_of_an_empty_metric()
            dist.destroy_process_group()
    if rank < 2:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        found["fit"] = fit(folder / "ddp", devices=2, strategy="ddp", plugins=[LightningEnvironment()])
    else:
        found["fit"] = fit(folder / "single", devices=1)
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
