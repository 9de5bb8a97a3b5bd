"""Every way of conditioning does condition: two classes are learned, and a support decides which of them is drawn."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from lightning_vfs import VFSDDPM
from lightning_vfs.metrics import FewShotAccuracy
from tests.conftest import tiny_config

SETS, SET_SIZE, PER_SUPPORT = 4, 4, 16

DENOISERS = {
    "dit": {"architecture": "dit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 2},
    "unet": {"architecture": "unet", "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "heads": 2},
}
CONDITIONINGS = {
    "film": ({"conditioning": "film"}, {"pool": "mean"}),
    "lag": ({"conditioning": "lag"}, {"pool": "patches"}),
}
DETERMINISTIC = [(denoiser, conditioning, "deterministic") for denoiser in DENOISERS for conditioning in CONDITIONINGS]
RANDOM = [
    (denoiser, conditioning, context)
    for denoiser in DENOISERS
    for conditioning in CONDITIONINGS
    for context in ("variational", "variational_discrete")
]


def four_sets() -> tuple[torch.Tensor, torch.Tensor]:
    """4 sets of 4 images (1, 8, 8), two of stripes across and two of stripes along, and their classes."""
    generator = torch.Generator().manual_seed(0)
    stripes = torch.tensor([1.0, -1.0] * 4)[:, None].expand(8, 8)
    pictures = torch.stack([stripes, stripes, stripes.T, stripes.T])[:, None, None] * 0.7
    noise = 0.15 * torch.randn(SETS, SET_SIZE, 1, 8, 8, generator=generator)
    return (pictures + noise).clamp(-1, 1), torch.tensor([0, 0, 1, 1])


@functools.cache
def trained(denoiser: str, conditioning: str, context: str) -> tuple[VFSDDPM, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    part, pool = CONDITIONINGS[conditioning]
    model = VFSDDPM(
        tiny_config(
            SET_SIZE,
            sets={"channels": 1},
            encoder={
                "dim": 32, "patch_size": 4, "context": context, "kl_weight": 1e-3, "codebook_size": 8,
                "codebook_groups": 4, **pool,
            },
            denoiser={**DENOISERS[denoiser], **part},
            diffusion={"timesteps": 100, "prediction": "x_0"},
        )
    ).train()  # fmt: skip
    x_set, classes = four_sets()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(80 if context == "deterministic" else 150):
        # Other indices at every step: other timesteps and other noise.
        loss = model.batch_loss({"images": x_set, "index": torch.arange(SETS) + SETS * step})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), x_set, classes


def accuracy(images: torch.Tensor, labels: torch.Tensor, x_set: torch.Tensor, classes: torch.Tensor) -> float:
    """few_shot_accuracy among the two classes, on pixels; images (sets, m, c, h, w), labels (sets,)."""
    real = x_set.flatten(0, 1).flatten(1)
    metric = FewShotAccuracy(real, classes.repeat_interleave(SET_SIZE), way=2)
    generated = images.flatten(0, 1).flatten(1)
    metric.update(generated, labels.repeat_interleave(images.shape[1]), torch.arange(len(generated)))
    return float(metric.compute())


@pytest.mark.parametrize(
    ("denoiser", "conditioning", "context"),
    [*DETERMINISTIC, *(pytest.param(*combination, marks=pytest.mark.slow) for combination in RANDOM)],
)
def test_a_support_decides_what_is_drawn(denoiser: str, conditioning: str, context: str) -> None:
    model, x_set, classes = trained(denoiser, conditioning, context)
    support = x_set[:, : model.config.sets.shots]
    images = model.sample(support, num_images=PER_SUPPORT, steps=10, seed=1)
    assert accuracy(images, classes, x_set, classes) > 0.95
    # The same noise with the support of the other class: the other class is drawn.
    swapped = model.sample(support.flip(0), num_images=PER_SUPPORT, steps=10, seed=1)
    assert accuracy(swapped, classes.flip(0), x_set, classes) > 0.95
    # It reproduces what it was trained on: the class's picture, and not only something nearer to it.
    pictures = torch.stack([x_set[classes == label].mean(dim=(0, 1)) for label in (0, 1)])[classes]
    assert (images.mean(dim=1) - pictures).abs().mean() < 0.2


def test_without_its_context_a_model_is_at_chance() -> None:
    """What the tests above would show of conditioning that is ignored."""
    model, x_set, classes = trained("dit", "film", "deterministic")
    model = copy.deepcopy(model)
    torch.nn.init.zeros_(model.denoiser.context_proj.weight)
    images = model.sample(x_set[:, : model.config.sets.shots], num_images=PER_SUPPORT, steps=10, seed=1)
    assert accuracy(images, classes, x_set, classes) < 0.8
