"""What a training step costs, against formulas, against a real step, and for the whole model family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.core import DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig
from lightning_vfs.modules.cost import activation_bytes, step_flops, step_operations
from tests.conftest import tiny_config
from tests.modules.family import Case, cases

CONFIG = VFSConfig(
    SetConfig(set_size=3, image_size=16, channels=3),
    EncoderConfig(dim=24, depth=2, heads=2, dim_head=16, mlp_ratio=2.0, patch_size=4),
    DenoiserConfig(dim=40, depth=3, heads=4, mlp_ratio=4.0, patch_size=2),
    DiffusionConfig(timesteps=20, variance="learned_range", loss="rescaled_mse"),
)


def forward_products(config: VFSConfig) -> Iterator[tuple[str, int]]:
    """Multiplications with an addition in every matrix product of one image: rows * inner * columns."""
    encoder, dit = config.encoder, config.denoiser
    patches, d, inner = (16 // 4) ** 2, encoder.dim, encoder.heads * encoder.dim_head
    tokens = 1 + patches
    yield "tokens of the set", patches * (4 * 4 * 3 * 3) * d
    for _ in range(encoder.depth):
        yield "queries, keys, values", tokens * d * 3 * inner
        yield "attention", 2 * tokens * tokens * inner
        yield "out", tokens * inner * d
        yield "feed-forward", 2 * tokens * d * 2 * d
    yield "head", d * d
    tokens, d = (16 // 2) ** 2, dit.dim
    yield "patches", tokens * (2 * 2 * 3) * d
    yield "sinusoids", 256 * d
    yield "timestep", d * d
    yield "context", encoder.dim * d
    for _ in range(dit.depth):
        yield "modulation", d * 6 * d
        yield "queries, keys, values", tokens * d * 3 * d
        yield "attention", 2 * tokens * tokens * d
        yield "out", tokens * d * d
        yield "feed-forward", 2 * tokens * d * 4 * d
    yield "last modulation", d * 2 * d
    yield "pixels", tokens * d * (2 * 2 * 6)


def test_flops_are_those_of_the_matrix_products() -> None:
    """A product of the backward pass for the weights and one for the input, unless that is data."""
    products = list(forward_products(CONFIG))
    data = sum(size for name, size in products if name in ("patches", "sinusoids"))
    images = 2 * 3
    assert step_flops(CONFIG, sets=2) == 2 * images * (3 * sum(size for _, size in products) - data)


def test_flops_follow_sets_and_set_size() -> None:
    per_set = step_flops(CONFIG)
    assert step_flops(CONFIG, sets=5) == 5 * per_set
    other = tiny_config(4, encoder={"tokenizer": "per_image_mean"})
    assert step_flops(other, set_size=3) < step_flops(other)


def test_operations_grow_with_depth() -> None:
    """By a block's: at least its 5 products and its attention, forward and backward, and not more than 100."""
    counts = [step_operations(replace(CONFIG, denoiser=replace(CONFIG.denoiser, depth=depth))) for depth in (1, 2, 3)]
    block = counts[1] - counts[0]
    assert counts[2] - counts[1] == block
    assert 3 * 6 <= block <= 100


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_activations_are_what_a_real_step_saves(precision: torch.dtype) -> None:
    """Masks of the dropout included, which belong to training alone."""
    config = replace(
        CONFIG, encoder=replace(CONFIG.encoder, dropout=0.1), denoiser=replace(CONFIG.denoiser, dropout=0.1)
    )
    assert activation_bytes(config, 2, precision) == _saved_by(VFSDDPM(config).train(), 2, precision)


def test_checkpointing_keeps_the_inputs_of_blocks_and_one_block() -> None:
    """The part that grows with depth is smaller, by far."""
    deeper = replace(CONFIG, denoiser=replace(CONFIG.denoiser, depth=CONFIG.denoiser.depth + 1))
    block = activation_bytes(deeper) - activation_bytes(CONFIG)
    checkpointed = [activation_bytes(config, checkpoint_activations=True) for config in (CONFIG, deeper)]
    tokens, images = (16 // 2) ** 2, 3
    assert checkpointed[1] - checkpointed[0] == images * tokens * 40 * 4  # its input, in float32
    inputs = _saved_by(VFSDDPM(CONFIG, checkpoint_activations=True).train(), sets=1)
    assert checkpointed[0] == pytest.approx(inputs + block, rel=0.05)


def _saved_by(model: VFSDDPM, sets: int, precision: torch.dtype = torch.float32) -> int:
    """Bytes that autograd saves in a step on real tensors, weights apart."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    images = torch.rand(sets, 3, 3, 16, 16) * 2 - 1
    batch = {"images": images, "index": torch.arange(sets)}
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast:
        model.batch_loss(batch)
    return sum(storage.nbytes() for address, storage in saved.items() if address not in weights)


def test_counting_leaves_the_random_numbers_as_they_were() -> None:
    config = tiny_config(5)
    before = torch.get_rng_state()
    step_flops(config)
    activation_bytes(config)
    assert torch.equal(torch.get_rng_state(), before)


def check_cost(case: Case) -> None:
    config = case.config(Path("no autoencoder is needed"))
    assert step_flops(config) > 0
    assert activation_bytes(config) > 0


@pytest.mark.parametrize("case", cases()[::10], ids=str)
def test_members_of_the_family_have_a_cost(case: Case) -> None:
    check_cost(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=str)
def test_all_members_of_the_family_have_a_cost(case: Case) -> None:
    check_cost(case)
