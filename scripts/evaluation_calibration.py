"""How far figures and their intervals can be trusted: false alarms, power, coverage, and a model against itself.

Every split has some classes drawn out of all characters. What is true is known: real images are no copies, a share of
them that is replaced by images of their supports is, and jittered means of it with other random numbers are the
same model again.

An interrupt ends it early, with the tables of the splits so far.

    python scripts/evaluation_calibration.py [--splits 40] [--classes 205] [--num_images 1000] [--shots 5]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.data import GlyphSets
from lightning_vfs.data.images import ClassImages
from lightning_vfs.evaluation.groups import groups_of
from lightning_vfs.evaluation.intervals import Run, difference, interval, standard_error
from lightning_vfs.evaluation.judging import EpisodeJudge, Judged
from lightning_vfs.evaluation.landmarks import landmark_images
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.evaluation.verdict import verdict
from lightning_vfs.metrics import FidelityOptions, ImageFeatures
from lightning_vfs.metrics.episode_figures import Estimate
from lightning_vfs.metrics.frechet import frechet_distance
from lightning_vfs.metrics.jackknife import fidelity_replicates
from lightning_vfs.metrics.novelty import Novelty
from lightning_vfs.metrics.thumbnails import thumbnails

SHARES = (0.05, 0.1, 0.3)
"""Of images that are replaced by copies."""


class Judgement(NamedTuple):
    """Figures of one set of images, with replicates, and what is said of them."""

    figures: dict[str, Run]
    estimates: dict[str, Estimate]
    verdict: str | None


class Split:
    """Some classes of all characters, their episodes, and a judge of images.

    Args:
        images: of the classes.
        extractor: of features.
        num_images: episodes.
        shots: images in a support.
        seed: draws episodes.
    """

    def __init__(self, images: ClassImages, extractor: ImageFeatures, num_images: int, shots: int, seed: int) -> None:
        self.images, self.extractor, self.layer = images, extractor, extractor.layers["fid"]
        self.episodes = images.episodes(num_images, shots, seed)
        self.real = RealImages(f"seed {seed}", images, extractor, None, num_images, seed)
        self.real.features(RankShard(256, torch.device("cpu")))
        groups, _ = groups_of(images.class_names, self.episodes, self.real)
        self.judge = EpisodeJudge(images, self.episodes, shots, self.real, self.layer, None, False, groups)
        self.thresholds = self.judge.thresholds()

    def judged(self, pixels: Tensor, real: bool = False) -> Judged:
        """What is found of an image uint8 of each episode."""
        far = torch.full((len(pixels),), math.inf)
        return self.judge.judged(thumbnails(pixels), far, self.features(pixels), self.thresholds, real)

    def features(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.extractor(batch)[self.layer] for batch in pixels.split(256)])

    def judgement(self, judged: Judged, features: Tensor | None = None) -> Judgement:
        """Figures of what was found, and FID and KID of features."""
        estimates = self.judge.estimates(judged)
        figures = {name: Run(e.value, e.replicates or ()) for name, e in estimates.items()}
        if features is not None:
            real, options = self.real.kept_features[self.layer], FidelityOptions()
            for metric in ("fid", "kid"):
                (replicates,) = fidelity_replicates(metric, features, real, self.judge.groups, options).values()
                # KID without its subsets is about the mean of its replicates.
                value = frechet_distance(features, real) if metric == "fid" else float(np.mean(replicates))
                figures[metric] = Run(value, replicates)
        said = verdict(estimates, judged.novelty.chances, judged.copies[:, 0], judged.training_copies[:, 0])
        return Judgement(figures, estimates, said)


def mixed(one: Judged, other: Judged, of_other: Tensor) -> Judged:
    """What is found of two sets of images of which each episode has one."""
    novelty = Novelty(*(torch.where(of_other, y, x) for x, y in zip(one.novelty, other.novelty, strict=True)))
    rest = (torch.where(of_other[:, None], y, x) for x, y in zip(one[1:], other[1:], strict=True))
    return Judged(novelty, *rest)


def splits_of(options: argparse.Namespace) -> Iterator[tuple[int, Split]]:
    """Classes drawn out of all characters, one split after the other."""
    extractor, everything = ImageFeatures("glyph-cnn"), GlyphSets(image_size=16, channels=1).load()
    for seed in range(options.splits):
        chosen = np.random.default_rng(seed).choice(everything.num_classes, options.classes, replace=False)
        images = everything.select(np.sort(chosen))
        yield seed, Split(images, extractor, options.num_images, options.shots, seed)


def judgements(split: Split, seed: int) -> dict[str, Judgement]:
    """Of real images, of mixtures with copies, and of one model twice."""
    rows, pixels = np.arange(len(split.episodes)), split.images.uint8(split.episodes.targets)
    copier = landmark_images("copier", split.images, split.episodes, rows, 0)
    real, copies = split.judged(pixels, True), split.judged(copier)
    found = {"real": split.judgement(real)}
    order = torch.from_numpy(np.random.default_rng((seed, 1)).permutation(len(rows)))
    for share in SHARES:
        found[f"{share:.0%} copies"] = split.judgement(mixed(real, copies, order < share * len(rows)))
    for name, noise in {"model": 2 * seed, "model again": 2 * seed + 1}.items():
        made = landmark_images("jittered_mean", split.images, split.episodes, rows, noise)
        found[name] = split.judgement(split.judged(made), split.features(made))
    return found


def above_zero(estimate: Estimate) -> bool:
    """By a one-sided test at 5%, with errors clustered by class."""
    return interval(estimate.value, estimate.error, estimate.groups - 1, level=0.9)[0] > 0


def covered(runs: list[Run], truth: float) -> float:
    """Share of 95% intervals that have a value."""
    bounds = [interval(run.value, standard_error(run.replicates), len(run.replicates) - 1) for run in runs]
    return float(np.mean([low <= truth <= high for low, high in bounds]))


def table(header: str, rows: list[list[str]]) -> None:
    print(f"\n| {header} |\n|{' --- |' * (header.count('|') + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def report(found: Mapping[str, list[Judgement]]) -> None:
    """Print the tables."""
    alarms, tested = [], ("support_affinity", "copy_rate")
    for name in ("real", *(f"{share:.0%} copies" for share in SHARES)):
        each = found[name]
        tests = [f"{np.mean([above_zero(j.estimates[figure]) for j in each]):.0%}" for figure in tested]
        alarms.append([name, *tests, f"{np.mean([j.verdict is not None for j in each]):.0%}"])
    table("images | support_affinity above 0 | copy_rate above 0 | copies its support", alarms)
    rows = []
    for kind in ("real", "model"):
        for figure in found[kind][0].figures:
            runs = [j.figures[figure] for j in found[kind]]
            values, errors = [run.value for run in runs], [standard_error(run.replicates) for run in runs]
            # Ideal images have 0 of these two; others are as they are on average.
            ideal = kind == "real" and figure in ("support_affinity", "copy_rate")
            truth = 0.0 if ideal else float(np.mean(values))
            row = [f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}", f"{np.mean(errors):.3f}"]
            rows.append([f"{figure}, {kind}", *row, f"{covered(runs, truth):.0%}"])
    table("figure | mean | sd over splits | mean standard error | coverage of 95%", rows)
    rows = []
    for figure in found["model"][0].figures:
        pairs = zip(found["model"], found["model again"], strict=True)
        apart = [difference([a.figures[figure]], [b.figures[figure]]) for a, b in pairs]
        low_high = [each.interval() for each in apart if each is not None]
        rows.append([figure, f"{np.mean([low > 0 or high < 0 for low, high in low_high]):.0%}"])
    table("figure | the same model twice: differs", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"splits": 40, "classes": 205, "num_images": 1000, "shots": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    found: dict[str, list[Judgement]] = {}
    try:
        for seed, split in splits_of(options):
            for name, judgement in judgements(split, seed).items():
                found.setdefault(name, []).append(judgement)
            print(f"split {seed + 1} of {options.splits}", flush=True)
    except KeyboardInterrupt:
        print("interrupted: these are the splits so far")
    report(found)


if __name__ == "__main__":
    main()
