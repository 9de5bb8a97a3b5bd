"""How the metrics react to what can be wrong with images: real glyphs, blurred, noised, mode-dropped, class-shuffled.

Two disjoint halves of the real images of unseen characters stand for generated and real ones; the first is spoilt by
degrees. Writes docs/sensitivity.png and prints the figures.

    python scripts/metric_sensitivity.py [--out docs/sensitivity.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from lightning_vfs.data import GlyphSets
from lightning_vfs.metrics import FewShotAccuracy, FidelityMetric, ImageFeatures
from lightning_vfs.metrics.fidelity import FidelityOptions

DEGREES = (0.0, 0.25, 0.5, 0.75, 1.0)
FIGURES = ("fid", "kid", "precision", "recall", "few_shot_accuracy")
NUM_IMAGES = 1000


def blurred(images: Tensor, labels: Tensor, degree: float) -> tuple[Tensor, Tensor]:
    """Gaussian blur up to a deviation of 1.5 pixels."""
    return (images if degree == 0 else gaussian_blur(images, [9, 9], [1.5 * degree] * 2)), labels


def noised(images: Tensor, labels: Tensor, degree: float) -> tuple[Tensor, Tensor]:
    """Gaussian noise up to a deviation of 64 grey levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 64 * degree
    return (images.float() + noise).round().clamp(0, 255).to(torch.uint8), labels


def mode_dropped(images: Tensor, labels: Tensor, degree: float) -> tuple[Tensor, Tensor]:
    """A share of the images is replaced by one image of their class, which stays the right class."""
    spoilt = images.clone()
    for label in labels.unique():
        rows = torch.nonzero(labels == label).squeeze(1)
        spoilt[rows[: round(len(rows) * degree)]] = images[rows[0]]
    return spoilt, labels


def class_shuffled(images: Tensor, labels: Tensor, degree: float) -> tuple[Tensor, Tensor]:
    """A share of the images is said to be of another image's class: good images that ignore their support."""
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.permutation(len(labels))[: round(len(labels) * degree)])
    said = labels.clone()
    said[rows] = labels[rows[torch.from_numpy(rng.permutation(len(rows)))]]
    return images, said


DISTORTIONS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "blurred": blurred,
    "noised": noised,
    "mode-dropped": mode_dropped,
    "class-shuffled": class_shuffled,
}


def measure() -> dict[str, dict[str, list[float]]]:
    """Figures by distortion and metric, one for every degree."""
    split = GlyphSets(image_size=16, channels=1).split("test")
    order = np.random.default_rng(0).permutation(len(split))
    first, second = np.sort(order[:NUM_IMAGES]), np.sort(order[NUM_IMAGES : 2 * NUM_IMAGES])
    extractor = ImageFeatures("glyph-cnn", ("fid", "kid", "prc"))
    metric = FidelityMetric(extractor, reset_real=False, options=FidelityOptions(kid_subset_size=500))
    metric.update(split.uint8(second), real=True, index=torch.arange(len(second)))
    layer = extractor.layers["fid"]
    everything = extractor(split.images)[layer]
    accuracy = FewShotAccuracy(everything, torch.from_numpy(split.labels), way=20)
    images, labels, index = split.uint8(first), torch.from_numpy(split.labels[first]), torch.arange(len(first))
    found: dict[str, dict[str, list[float]]] = {}
    for name, spoil in DISTORTIONS.items():
        found[name] = {figure: [] for figure in FIGURES}
        for degree in DEGREES:
            spoilt, said = spoil(images, labels, degree)
            features = extractor(spoilt)
            metric.update(features, real=False, index=index)
            accuracy.update(features[layer], said, index)
            figures = {key: float(value) for key, value in metric.compute().items()}
            figures["few_shot_accuracy"] = float(accuracy.compute())
            metric.reset()
            accuracy.reset()
            for figure in FIGURES:
                found[name][figure].append(figures[figure])
    return found


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A panel for every metric, a line for every distortion."""
    figure, panels = plt.subplots(1, len(FIGURES), figsize=(15, 3.2), layout="constrained")
    for panel, name in zip(panels, FIGURES, strict=True):
        for distortion, figures in found.items():
            panel.plot(DEGREES, figures[name], marker="o", markersize=3, label=distortion)
        panel.set_title(name)
        panel.set_xlabel("degree")
        panel.grid(alpha=0.3)
        if name in ("fid", "kid"):
            panel.set_yscale("symlog", linthresh=10 if name == "fid" else 1)
        else:
            panel.set_ylim(-0.03, 1.03)
    panels[-1].axhline(1 / 20, color="grey", linestyle=":", linewidth=1)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "sensitivity.png")
    found = measure()
    draw(found, parser.parse_args().out)
    print(f"| distortion | {' | '.join(FIGURES)} |\n| --- |{' --- |' * len(FIGURES)}")
    for name, figures in found.items():
        print(f"| {name} | {' | '.join(f'{figures[f][0]:.3g} to {figures[f][-1]:.3g}' for f in FIGURES)} |")


if __name__ == "__main__":
    main()
