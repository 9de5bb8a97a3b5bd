"""One of the three processes of test_ranks.py: `python rank_process.py <rank> <port> <folder>`."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch_fidelity.registry import register_feature_extractor

from lightning_vfs.core.errors import EvaluationError
from lightning_vfs.metrics import METRICS, FewShotAccuracy, FidelityMetric, FidelityOptions, ImageFeatures
from tests.metrics.conftest import TINY, TinyExtractor
from tests.simulated_gpu import simulated_gpu

CLASSES = 6


def features_of(extractor, num, seed):
    images = torch.randint(0, 100 + seed, (num, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return extractor(images.to(torch.uint8))


def shares(num, rank, world_size, batch_size):
    """This rank's indices, backwards: every `world_size`-th, and of the first ranks one that others have too."""
    mine = torch.arange(rank, num, world_size).flip(0)
    return [*mine.split(batch_size), torch.tensor([0])] if rank < 2 else mine.split(batch_size)


def all_figures(rank, world_size, generated, real, device="cpu"):
    """Rows of generated images come from the device, those of real ones from the CPU, where they are cached."""
    extractor = ImageFeatures(TINY, METRICS)
    metric = FidelityMetric(extractor, options=FidelityOptions(kid_subset_size=4, isc_splits=2)).to(device)
    rows = {False: features_of(extractor, generated, seed=100), True: features_of(extractor, real, seed=150)}
    for is_real, features in rows.items():
        for index in shares(len(features["6"]), rank, world_size, batch_size=5):
            place = "cpu" if is_real else device
            metric.update({layer: values[index].to(place) for layer, values in features.items()}, is_real, index)
    labels = [torch.arange(len(rows[is_real]["6"])) % 2 for is_real in (False, True)]
    found = {name: value.item() for name, value in metric.compute().items()}
    found |= {f"class {c}": figures["fid"] for c, figures in metric.per_class(*labels, [0, 1]).items()}
    return found, metric.notes()


def accuracies(rank, world_size, device="cpu"):
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % CLASSES
    centres = torch.randn(CLASSES, 5, generator=rng)
    real, generated = (centres[labels] + torch.randn(60, 5, generator=rng) for _ in range(2))
    metric = FewShotAccuracy(real, labels, way=(2, 5)).to(device)
    for index in shares(60, rank, world_size, batch_size=7):
        metric.update(generated[index].to(device), labels[index], index)
    return metric.compute().tolist()


def class_error(rank):
    metric = FidelityMetric(ImageFeatures(TINY))
    for is_real in (False, True):
        metric.update(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), is_real, 3 * rank + torch.arange(3))
    try:
        metric.per_class(torch.arange(9), torch.arange(9), [0])
    except EvaluationError as error:
        return str(error)


def on_gpus(rank, world_size, folder):
    """Figures from ranks whose process group serves tensors of a GPU alone, as NCCL's does; MPS has no float64."""
    store = dist.FileStore(str(folder / f"store-gpus-{world_size}"), world_size)
    dist.init_process_group("cuda:gloo", store=store, rank=rank, world_size=world_size)
    with simulated_gpu(float64=False):
        figures, notes = all_figures(rank, world_size, 31, 22, device="cuda")
        found = figures, notes, accuracies(rank, world_size, device="cuda")
    dist.destroy_process_group()
    return found


def main():
    rank, folder = int(sys.argv[1]), Path(sys.argv[3])
    torch.set_num_threads(1)
    register_feature_extractor(TINY, TinyExtractor)
    found = {}
    for world_size in (1, 2, 3):
        if rank < world_size:
            store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
            found[f"uneven shares, {world_size}"] = all_figures(rank, world_size, 31, 22)
            found[f"few images, {world_size}"] = all_figures(rank, world_size, 4, 5)
            found[f"accuracies, {world_size}"] = accuracies(rank, world_size)
            found[f"error, {world_size}"] = class_error(rank)
            dist.destroy_process_group()
    if rank < 2:
        found["on GPUs"] = on_gpus(rank, 2, folder)
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
