"""The networks' parts, against plain computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_vfs.core import VFSConfig, stack_patches
from lightning_vfs.modules import LSA, SPT, DiT, SetEncoder, ViTEncoder
from tests.conftest import tiny_config

pytestmark = pytest.mark.numeric


def test_spt_is_layer_norm_and_projection_of_stacked_patches() -> None:
    spt = SPT(patch_dim=72, patch_size=2, dim=5)
    x_set = torch.randn(2, 6, 3, 8, 8)
    expected = F.layer_norm(stack_patches(x_set, 2), (72,), eps=1e-6) @ spt.proj.weight.T + spt.proj.bias
    torch.testing.assert_close(spt(x_set), expected)


def test_lsa_is_attention_to_the_others_with_a_learned_scale() -> None:
    torch.manual_seed(0)
    lsa = LSA(dim=8, heads=2, dim_head=4, dropout=0.0)
    with torch.no_grad():
        lsa.temperature.fill_(0.3)
    x = torch.randn(3, 5, 8)
    q, k, v = (part.reshape(3, 5, 2, 4).transpose(1, 2) for part in lsa.to_qkv(x).chunk(3, dim=-1))
    scores = q @ k.transpose(-1, -2) * torch.tensor(0.3).exp()
    weights = scores.masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf).softmax(dim=-1)
    expected = lsa.to_out((weights @ v).transpose(1, 2).reshape(3, 5, 8))
    torch.testing.assert_close(lsa(x), expected)
    assert LSA(8, 2, 16, 0.0).temperature.item() == pytest.approx(torch.tensor(0.25).log().item())


@pytest.mark.parametrize("pool", ["cls", "mean", "sum", "patches", "none"])
@pytest.mark.parametrize("time_token", ["none", "zero"])
def test_pooling(pool: str, time_token: str) -> None:
    encoder = SetEncoder(tiny_config(encoder={"pool": pool, "time_token": time_token})).eval()
    seen = []
    encoder.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    # Not linear, so that it matters whether tokens go through it before or after their mean.
    encoder.head_norm, encoder.head = torch.nn.Identity(), torch.nn.ReLU()
    context = encoder(torch.randn(2, 6, 3, 8, 8))
    (tokens,) = seen
    assert tokens.shape == (2, 17 if time_token == "none" else 18, 16)
    patches = tokens[:, -16:]
    expected = {
        "cls": tokens[:, 0].relu(),
        "mean": tokens.mean(1).relu(),
        "sum": tokens.sum(1).relu(),
        "patches": patches.relu().mean(1),
        "none": tokens.relu().mean(1),
    }[pool]
    torch.testing.assert_close(context, expected)


def test_a_projection_gives_the_context_its_width() -> None:
    config = tiny_config(encoder={"projection_dim": 5, "projection_hidden_dim": 7, "head_hidden_dim": 9})
    encoder = SetEncoder(config).eval()
    assert encoder(torch.randn(2, 6, 3, 8, 8)).shape == (2, 5)
    assert DiT(config).context_proj.in_features == 5


def test_per_slot_mean_counts_the_empty_slots() -> None:
    encoder = SetEncoder(tiny_config(encoder={"tokenizer": "per_slot_mean"})).eval()
    x_set = torch.randn(2, 6, 3, 8, 8)
    completed = torch.cat([x_set[:, :5], torch.zeros_like(x_set[:, :1])], dim=1)
    assert (encoder(completed) - encoder(x_set[:, :5])).abs().max() > 1e-4


def test_padding_is_zeros_around_the_image_that_are_cut_off_again() -> None:
    torch.manual_seed(0)
    padded = DiT(tiny_config(denoiser={"pad": 2}))
    for parameter in padded.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    whole = DiT(tiny_config(sets={"image_size": 12}, encoder={"patch_size": 4}))
    whole.load_state_dict(padded.state_dict())
    x_t, t, context = torch.randn(2, 3, 8, 8), torch.tensor([3, 7]), torch.randn(2, 16)
    expected = whole(F.pad(x_t, [2] * 4), t, context)[..., 2:-2, 2:-2]
    torch.testing.assert_close(padded(x_t, t, context), expected)


def test_weights_of_0_1_0_in_which_the_temperature_is_a_scalar_load() -> None:
    weights = SetEncoder(tiny_config()).state_dict()
    name = "layers.0.attn.temperature"
    encoder = SetEncoder(tiny_config())
    encoder.load_state_dict(weights | {name: torch.tensor(-1.5)})
    assert torch.equal(encoder.layers[0].attn.temperature, torch.tensor([-1.5]))


def test_the_time_token_is_seen_and_cannot_be_forgotten() -> None:
    encoder = SetEncoder(tiny_config(encoder={"time_token": "timestep"})).eval()
    x_set = torch.randn(2, 6, 3, 8, 8)
    early, late = encoder(x_set, torch.tensor([0, 0])), encoder(x_set, torch.tensor([15, 15]))
    assert (early - late).abs().max() > 1e-4
    with pytest.raises(ValueError, match="needs the timestep t"):
        encoder(x_set)


def test_per_image_mean_takes_any_number_of_images_in_any_order() -> None:
    encoder = SetEncoder(tiny_config(encoder={"tokenizer": "per_image_mean"})).eval()
    x_set = torch.randn(2, 9, 3, 8, 8)
    torch.testing.assert_close(encoder(x_set), encoder(x_set.flip(1)))
    torch.testing.assert_close(encoder(x_set[:, :1]), encoder(x_set[:, :1].expand(-1, 4, -1, -1, -1)))


def test_a_fresh_dit_is_zero_and_a_changed_one_sees_all_it_is_given() -> None:
    torch.manual_seed(0)
    dit = DiT(tiny_config())
    x_t, t, context = torch.randn(2, 3, 8, 8), torch.tensor([3, 7]), torch.randn(2, 16)
    assert dit(x_t, t, context).abs().max() == 0
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    output = dit(x_t, t, context)
    for changed in (dit(x_t + 1, t, context), dit(x_t, t + 1, context), dit(x_t, t, context + 1)):
        assert (changed - output).abs().max() > 1e-3


def test_a_learned_variance_doubles_the_output() -> None:
    dit = DiT(tiny_config(diffusion={"variance": "learned_range"}))
    assert dit(torch.randn(2, 3, 8, 8), torch.tensor([3, 7]), torch.randn(2, 16)).shape == (2, 6, 8, 8)


VIT_TOKEN_POOLS = ["mean_patch", "none"]


@pytest.mark.parametrize(
    ("conditioning", "pool"),
    [
        *(("film", pool) for pool in ["cls", "mean", *VIT_TOKEN_POOLS]),
        *(("lag", pool) for pool in VIT_TOKEN_POOLS),
    ],
)
def test_pooling_of_a_vit_over_the_patches_of_all_images(conditioning: str, pool: str) -> None:
    torch.manual_seed(0)
    config = tiny_config(
        4, encoder={"architecture": "vit", "pool": pool, "depth": 2}, denoiser={"conditioning": conditioning}
    )
    vit = ViTEncoder(config).eval()
    x_set = torch.randn(2, 4, 3, 8, 8)
    patches = torch.stack([vit.to_patch_embedding(x_set[:, i : i + 1]) for i in range(4)], dim=1)
    tokens = patches.flatten(1, 2)
    positions = vit.pos_embedding[:, 1:].repeat(1, tokens.shape[1] // 16, 1)
    x = torch.cat([(vit.cls_token + vit.pos_embedding[:, :1]).expand(2, -1, -1), tokens + positions], dim=1)
    for layer in vit.layers:
        x = layer(x)
    if pool == "mean_patch":
        x = x[:, 1:].reshape(2, 4, 16, 16).mean(dim=1)
        for layer in vit.layers:
            x = layer(x)
    pooled = {"cls": lambda: x[:, 0], "mean": lambda: x.mean(1)}.get(pool, lambda: x)()
    expected = vit.head(vit.head_norm(pooled))
    if conditioning == "film" and expected.ndim == 3:
        expected = expected.mean(dim=1)
    context = vit(x_set)
    torch.testing.assert_close(context, expected)
    assert context.shape[1:] == config.encoded_shape


def test_a_vit_attends_plainly_and_to_itself() -> None:
    torch.manual_seed(0)
    attention = ViTEncoder(tiny_config(encoder={"architecture": "vit", "pool": "mean"})).layers[0].attn
    x = torch.randn(3, 5, 16)
    q, k, v = (part.reshape(3, 5, 2, 8).transpose(1, 2) for part in attention.to_qkv(x).chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(dim=-1)
    torch.testing.assert_close(attention(x), attention.to_out((weights @ v).transpose(1, 2).reshape(3, 5, 16)))


@pytest.mark.parametrize("pool", ["cls", "mean_patch"])
def test_a_vit_does_not_mind_the_order_of_images(pool: str) -> None:
    vit = ViTEncoder(tiny_config(encoder={"architecture": "vit", "pool": pool})).eval()
    x_set = torch.randn(2, 6, 3, 8, 8)
    torch.testing.assert_close(vit(x_set.flip(1)), vit(x_set), rtol=1e-4, atol=1e-5)


def lag_config(**denoiser) -> VFSConfig:
    return tiny_config(
        encoder={"pool": "patches", "dim": 24, "heads": 3},
        denoiser={"conditioning": "lag", "depth": 3, "heads": 2, **denoiser},
    )


def test_lag_attends_to_the_tokens_between_attention_and_feed_forward() -> None:
    torch.manual_seed(0)
    block = DiT(lag_config()).blocks[0]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, condition, context = torch.randn(2, 4, 16), torch.randn(2, 16), torch.randn(2, 9, 24)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
    h = x + gate1 * block.attn(F.layer_norm(x, (16,), eps=1e-6) * (1 + scale1) + shift1)
    cross = block.cross_attn
    q = cross.q(F.layer_norm(h, (16,), cross.norm.weight, cross.norm.bias, 1e-6))
    seen = F.layer_norm(context, (24,), cross.context_norm.weight, cross.context_norm.bias, 1e-6)
    k, v = cross.kv(seen).chunk(2, dim=-1)
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (q, k, v))
    attended = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(dim=-1) @ v
    h = h + cross.out(attended.transpose(1, 2).flatten(2))
    h = h + gate2 * block.mlp(F.layer_norm(h, (16,), eps=1e-6) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, condition, context), h)


def test_lag_sees_timestep_tokens_and_image_and_starts_as_without_a_context() -> None:
    torch.manual_seed(0)
    dit = DiT(lag_config())
    x_t, t, context = torch.randn(2, 3, 8, 8), torch.tensor([3, 7]), torch.randn(2, 16, 24)
    assert not hasattr(dit, "context_proj")
    for name, parameter in dit.named_parameters():
        if ".cross_attn.out." not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    torch.testing.assert_close(dit(x_t, t, context), dit(x_t, t, torch.randn(2, 16, 24)))
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    output = dit(x_t, t, context)
    others = torch.cat([torch.randn(2, 1, 24), context[:, 1:]], dim=1)
    for changed in (dit(x_t + 1, t, context), dit(x_t, t + 1, context), dit(x_t, t, others)):
        assert (changed - output).abs().max() > 1e-3


def test_the_layers_that_attend_are_chosen() -> None:
    dit = DiT(lag_config(cross_attention_layers=(0, 2)))
    assert [block.cross_attn is not None for block in dit.blocks] == [True, False, True]
    assert all(block.cross_attn is not None for block in DiT(lag_config()).blocks)


def test_an_unconditional_dit_is_given_no_context() -> None:
    torch.manual_seed(0)
    dit = DiT(tiny_config(encoder={"architecture": "none"}, denoiser={"film": "concat"}))
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x_t = torch.randn(2, 3, 8, 8)
    early, late = dit(x_t, torch.tensor([0, 0]), None), dit(x_t, torch.tensor([9, 9]), None)
    assert (early - late).abs().max() > 1e-3
    assert not hasattr(dit, "context_proj")


def test_a_conditional_dit_is_not_left_without_its_context() -> None:
    with pytest.raises(AssertionError, match="conditioned on a context"):
        DiT(tiny_config())(torch.randn(2, 3, 8, 8), torch.tensor([3, 7]), None)
