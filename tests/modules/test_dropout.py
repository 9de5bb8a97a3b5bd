"""Dropout that follows the samples, and blocks whose activations are computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_vfs import VFSDDPM
from lightning_vfs.modules.attention import LSA, EncoderAttention
from lightning_vfs.modules.dropout import Dropout
from lightning_vfs.modules.noise import sample_keys
from tests.conftest import tiny_config

KEYS = sample_keys(torch.arange(4096), 1, seed=3)[:, 0]
UNET = {
    "architecture": "unet",
    "channels": 8,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [4],
}
HEADS = {"head_hidden_dim": 24, "projection_dim": 8, "projection_hidden_dim": 12}

DROPPING: dict[str, dict[str, Any]] = {
    "set_vit": {"encoder": HEADS},
    "lag": {"encoder": {"pool": "patches"}, "denoiser": {"conditioning": "lag"}},
    "kept_in": {"sets": {"held_out": "none"}},
    "vit": {"encoder": {"architecture": "vit", "pool": "mean_patch"}},
    "unet": {"encoder": {**UNET, "pool": "mean", **HEADS}, "denoiser": UNET},
}


def model_of(name: str, **options: Any) -> VFSDDPM:
    """A model in training, with dropout everywhere and no layer that gives zero, as a fresh one's do."""
    torch.manual_seed(0)
    parts = {part: dict(DROPPING[name].get(part, {})) for part in ("sets", "encoder", "denoiser")}
    for part in ("encoder", "denoiser"):
        parts[part]["dropout"] = 0.5
    model = VFSDDPM(tiny_config(4, **parts), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def batch_of(sets: slice) -> dict[str, torch.Tensor]:
    images = torch.rand(6, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"images": images[sets], "index": torch.arange(100, 106)[sets]}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_mean_is_kept(p: float) -> None:
    dropped = Dropout(p)(torch.ones(4096, 5, 13), KEYS)
    kept = dropped != 0
    assert abs(kept.float().mean() - (1 - p)) < 0.005
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 1 / (1 - p)), rtol=1e-3, atol=0)
    # of every feature, and of every sample
    assert (kept.float().mean(dim=0) - (1 - p)).abs().max() < 0.04
    assert (kept.float().mean(dim=(1, 2)) - (1 - p)).abs().max() < 0.4


def test_masks_of_samples_layers_and_seeds_are_unrelated_and_those_of_a_sample_alike_in_any_batch() -> None:
    first, second = Dropout(0.5), Dropout(0.5)
    second.number = 1
    x = torch.ones(4096, 16)
    masks = [
        first(x, KEYS),
        second(x, KEYS),
        first(x, KEYS.roll(1)),
        first(x, sample_keys(torch.arange(4096), 1, 4)[:, 0]),
    ]
    assert (torch.corrcoef(torch.stack(masks).flatten(1)) - torch.eye(4)).abs().max() < 0.02
    parts = [first(part, key) for part, key in zip(x.split(1000), KEYS.split(1000), strict=True)]
    assert torch.equal(torch.cat(parts), masks[0])


def test_it_is_for_training_and_asks_for_a_key_there() -> None:
    layer = Dropout(0.5)
    with pytest.raises(ValueError, match="give `key`"):
        layer(torch.ones(2, 3), None)
    assert torch.equal(Dropout(0.0)(torch.ones(2, 3), None), torch.ones(2, 3))
    assert torch.equal(layer.eval()(torch.ones(2, 3), None), torch.ones(2, 3))


@pytest.mark.parametrize("kind", [EncoderAttention, LSA])
def test_attention_with_dropped_weights_is_the_fused_one_on_average(kind: type[EncoderAttention]) -> None:
    torch.manual_seed(0)
    attention = kind(dim=8, heads=2, dim_head=4, dropout=0.2)
    x = torch.randn(1, 5, 8)
    mean = attention.train()(x.expand(4096, -1, -1), KEYS).mean(dim=0)
    expected = attention.eval()(x)[0]
    # The bias of the last layer is dropped with the rest.
    assert (mean - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", DROPPING)
def test_what_a_step_drops_follows_the_global_index(name: str) -> None:
    model = model_of(name)
    whole = model.batch_loss(batch_of(slice(0, 6)))
    parts = [model.batch_loss(batch_of(slice(first, first + 2))) for first in (4, 0, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.batch_loss(batch_of(slice(0, 6))), whole), "no generator is asked"
    for part in (model.encoder, model.denoiser):
        layers = [layer for layer in part.modules() if isinstance(layer, Dropout)]
        assert sorted(layer.number for layer in layers) == list(range(len(layers)))
        part.eval()
        assert not torch.equal(model.batch_loss(batch_of(slice(0, 6))), whole)
        part.train()


def gradients(model: VFSDDPM) -> tuple[list[torch.Tensor], int]:
    """Gradients of a step, and the numbers that were kept for them."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.batch_loss(batch_of(slice(0, 6)))
    loss.backward()
    return [parameter.grad for parameter in model.parameters()], sum(tensor.numel() for tensor in kept.values())


@pytest.mark.parametrize("name", DROPPING)
def test_activations_computed_again_are_the_same_ones(name: str) -> None:
    expected, kept = gradients(model_of(name))
    again, kept_less = gradients(model_of(name, checkpoint_activations=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, expected, strict=True))
    assert kept_less < 0.7 * kept
