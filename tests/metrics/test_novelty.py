"""Figures of novelty, compared with plain loops over images, and with known values on glyphs."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_vfs.data import GlyphSets
from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.metrics.episode_figures import copy_rate, nearest_mean_hits, novel_accuracy, support_affinity
from lightning_vfs.metrics.novelty import SupportReference, weighted_quantiles
from lightning_vfs.metrics.thumbnails import thumbnails
from lightning_vfs.metrics.training_images import TrainingReference

pytestmark = pytest.mark.numeric


def drawn(counts: list[int], twins: int = 0, channels: int = 1, size: int = 16, seed: int = 0) -> ClassImages:
    """Classes around a picture of each; the first `twins` images of every class are the same."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = rng.integers(60, 200, (len(counts), channels, size, size))
    images = np.clip(centres[labels] + rng.normal(0, 30, (len(labels), channels, size, size)), 0, 255).astype(np.uint8)
    for start in np.cumsum([0, *counts[:-1]]):
        images[start : start + twins] = images[start]
    return ClassImages(torch.from_numpy(images), [f"class {i}" for i in range(len(counts))], labels)


def plain_distance(y: Tensor, x: Tensor) -> float:
    """Of two images, by their averages over blocks: the least over shifts and mirror images of x."""
    y, x = (thumbnails(image[None])[0].double().numpy() for image in (y, x))
    side, found = y.shape[-1], math.inf
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            rows, columns = (np.clip(np.arange(side) + k, 0, side - 1) for k in (i, j))
            moved = x[:, rows][:, :, columns]
            found = min(found, *(np.sqrt(((y - form) ** 2).sum()) for form in (moved, moved[..., ::-1])))
    return found


def plain_novelty(images: ClassImages, episodes: Episodes, generated: Tensor, own: bool) -> np.ndarray:
    """Hit, chance and closeness of every episode, (n, 3)."""
    found = np.full((len(generated), 3), np.nan)
    for i, image in enumerate(generated):
        members = np.flatnonzero(images.labels == episodes.labels[i])
        pixels = {int(m): images.uint8(m).numpy().tobytes() for m in members}
        unique = {data: m for m, data in reversed(pixels.items())}
        support = {pixels[s] for s in episodes.supports[i].tolist()}
        outside = set(unique) - support
        if own:
            if pixels[int(episodes.targets[i])] in support:
                continue
            outside -= {pixels[int(episodes.targets[i])]}
        if not outside:
            continue
        apart = {data: plain_distance(image, images.uint8(unique[data])) for data in support | outside}
        nearest = {data for data, distance in apart.items() if distance <= min(apart.values()) + 1e-4}
        several = list(unique.values())
        scale = np.mean([plain_distance(images.uint8(a), images.uint8(b)) for a in several for b in several if a != b])
        found[i] = (
            len(nearest & support) / len(nearest),
            len(support) / len(support | outside),
            min(apart[data] for data in support) / scale,
        )
    return found


CASES = {
    "five": ([8, 9, 12], 5, {}),
    "one": ([3, 4, 2], 1, {}),
    "one left": ([6, 6, 6], 5, {}),
    "twins": ([7, 8, 6], 5, {"twins": 3}),
    "all twins": ([6, 7, 9], 5, {"twins": 7}),
    "colour": ([7, 7], 3, {"channels": 3, "size": 32}),
    "small": ([7, 7], 3, {"size": 8}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["noise", "target", "copy", "between"])
def test_it_is_that_of_plain_loops(case: str, kind: str) -> None:
    counts, shots, options = CASES[case]
    images = drawn(counts, **options)
    episodes = images.episodes(5, shots, 0)
    support = images.uint8(episodes.supports)
    noise = torch.randint(0, 256, support[:, 0].shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    generated = {
        "noise": noise,
        "target": images.uint8(episodes.targets),
        "copy": support[:, 0],
        "between": (support[:, 0].int() + support[:, -1].int()).div(2).to(torch.uint8),
    }[kind]
    expected = plain_novelty(images, episodes, generated, kind == "target")
    found = SupportReference(images, episodes).novelty(thumbnails(generated), kind == "target")
    np.testing.assert_allclose(torch.stack(found, dim=1), expected, rtol=1e-9, atol=1e-5)
    if kind == "copy":
        assert set(found.hits[found.hits.isfinite()].tolist()) <= {1.0}


def test_images_that_are_not_finite_count_as_copies_and_others_are_left_alone() -> None:
    images = drawn([8, 9])
    episodes = images.episodes(10, 3, 0)
    reference, thumbs = SupportReference(images, episodes), thumbnails(images.uint8(episodes.targets))
    whole = reference.novelty(thumbs)
    thumbs[3, 0, 2, 2] = torch.nan
    broken = reference.novelty(thumbs)
    assert broken.hits[3] == 1 and broken.closeness[3].isnan()
    assert torch.equal(broken.hits[torch.arange(10) != 3], whole.hits[torch.arange(10) != 3])
    assert TrainingReference(images, 0).nearest(thumbs)[3] == math.inf


def test_other_real_images_are_outside_the_support() -> None:
    images = drawn([8, 6, 5], twins=2)
    episodes = images.episodes(19, 4, 0)
    for i, other in enumerate(SupportReference(images, episodes).others.tolist()):
        pixels = {m: images.uint8(m).numpy().tobytes() for m in np.flatnonzero(images.labels == episodes.labels[i])}
        outside = set(pixels.values()) - {pixels[s] for s in episodes.supports[i]}
        assert (other < 0) == (not outside)
        if outside:
            assert pixels[other] in outside
            assert pixels[other] != pixels[episodes.targets[i]] or len(outside) == 1


@pytest.mark.parametrize("most", [1000, 20])
def test_the_nearest_training_image_is_found(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_vfs.metrics.training_images.MOST_TRAINING_IMAGES", most)
    images = drawn([15, 16], twins=3)
    reference = TrainingReference(images, 0)
    assert len(reference._rows[0]) == (27 if most > 31 else len(reference._rows[1]))
    own = np.arange(31)
    rows = reference.rows_of(own)
    assert most < 31 or rows[0] == rows[1] == rows[2] != rows[3]
    near, others = reference.nearest(thumbnails(images.images)), reference.nearest(thumbnails(images.images), rows)
    kept = {row: i for i, row in enumerate(rows) if row >= 0}
    for i in range(31):
        # The variants are those of the image itself here.
        apart = {row: plain_distance(images.uint8(j), images.uint8(i)) for row, j in kept.items()}
        assert near[i] == pytest.approx(min(apart.values()), abs=1e-3)
        for limit in (0.9 * near[i], 1.1 * near[i], math.nan):
            found = reference.nearest(thumbnails(images.uint8([i])), limits=torch.tensor([limit]).double())
            assert found > limit or found == near[i] or (math.isnan(limit) and found == math.inf)
        apart.pop(rows[i], None)
        assert others[i] == pytest.approx(min(apart.values()), rel=1e-6)


def test_hits_of_means_are_those_of_plain_loops() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 6 + [2] * 5 + [3] * 2)
    real = torch.randn(13, 4, generator=rng) + labels[:, None]
    own = torch.tensor([0, 0, 2, 2, 3, 3, 1])
    features = torch.randn(7, 4, generator=rng) + own[:, None]
    features[1] = torch.nan
    left = torch.tensor([[0, 1], [2, 3], [6, -1], [-1, -1], [11, -1], [11, 12], [-1, -1]])
    found = nearest_mean_hits(features, own, real, labels, left)
    for i in range(7):
        rest = [j for j in range(13) if labels[j] == own[i] and j not in left[i]]
        if not rest:
            assert found[i].isnan()
            continue
        mine = (features[i] - real[rest].mean(dim=0)).norm()
        others = [(features[i] - real[labels == c].mean(dim=0)).norm() for c in (0, 2, 3) if c != own[i]]
        assert found[i] == float(all(mine < other for other in others))
    assert found[:2].tolist()[1] == 0 and found[5:].isnan().all()
    assert nearest_mean_hits(features[:1], own[:1], real[:6], labels[:6], left[:1]).isnan().all()


def test_quantiles_weigh() -> None:
    values = torch.tensor([3.0, 1.0, 2.0]).double()
    weights = torch.tensor([[1.0, 0.5, 8.5], [0.0, 0.5, 8.5], [1.0, 0.0, 0.0]]).double().T
    found = [weighted_quantiles(values, weights, q) for q in (0.05, 0.06, 0.9, 0.95)]
    assert found == [[1, 1, 3], [2, 2, 3], [2, 2, 3], [3, 2, 3]]
    assert math.isnan(weighted_quantiles(values, weights[:, :1] * 0, 0.5)[0])


def test_without_episodes_that_take_part_there_is_no_figure() -> None:
    images = drawn([6, 6], twins=6)
    episodes = images.episodes(12, 5, 0)
    found = SupportReference(images, episodes).novelty(thumbnails(images.uint8(episodes.targets)))
    assert support_affinity(found, torch.from_numpy(episodes.labels)) is None


@pytest.mark.slow
def test_landmarks_on_glyphs_have_their_known_figures() -> None:
    """Within three standard errors of those of 1,000 episodes; `scripts/novelty_landmarks.py` has these."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "novelty_landmarks.py"))
    found = script["figures_of_landmarks"](300)
    for name, expected in script["KNOWN"].items():
        for figure, known in zip(found[name], expected, strict=True):
            assert math.isnan(known) or figure.value == pytest.approx(known, abs=3 * figure.error + 0.02), name
    assert found["copy"][1].value == found["flip"][1].value == 1 and found["copy"][3].value == 0


def test_figures_of_mixed_images_lie_between() -> None:
    images = GlyphSets(image_size=16, channels=1).split("test").select(range(40))
    episodes = images.episodes(60, 3, 0)
    labels, reference = torch.from_numpy(episodes.labels), SupportReference(images, episodes)
    real = reference.novelty(thumbnails(images.uint8(episodes.targets)), True)
    copies = thumbnails(images.uint8(episodes.supports[:, 0]))
    assert support_affinity(reference.novelty(copies), labels)[:2] == (1, 0)
    assert support_affinity(real, labels).value < 0.4
    (tau,) = reference.thresholds(0.05, torch.ones(60, 1).bool())
    rates = [copy_rate((found.closeness <= tau).double(), labels).value for found in (real, reference.novelty(copies))]
    assert rates[0] < 0.2 and rates[1] == 1
    right, none, every = torch.ones(60).double(), torch.zeros(60).bool(), torch.ones(60).bool()
    assert novel_accuracy(right, reference.novelty(copies), none, labels).value == 0
    honest = novel_accuracy(right, real, none, labels).value
    assert honest == pytest.approx(1 - support_affinity(real, labels).value)
    assert novel_accuracy(right, real, every, labels).value == 0
