"""The UNet and the set encoder made of its half, against guided-diffusion's formulas in plain functions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vfs.core.config import LatentConfig, VFSConfig
from lightning_vfs.modules.unet import UNet, UNetEncoder
from lightning_vfs.modules.unet_blocks import group_norm
from tests.conftest import tiny_config

pytestmark = pytest.mark.numeric

SMALL = {"architecture": "unet", "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "heads": 2}
"""One block per level at 8 and 4 pixels, attention in the middle alone."""

ARCHITECTURES = {
    "scale_shift": {**SMALL, "attention_resolutions": [8, 4], "scale_shift_norm": True},
    "resblock_updown": {
        **SMALL,
        "channels": 12,
        "channel_mult": [1, 3, 2],
        "num_res_blocks": 2,
        "attention_resolutions": [4],
        "heads": 3,
        "scale_shift_norm": False,
        "resblock_updown": True,
        "film": "concat",
    },
    "wide_first": {
        **SMALL,
        "channel_mult": [2, 1, 1],
        "num_res_blocks": 2,
        "attention_resolutions": [2, 8],
        "heads": 4,
        "resblock_updown": True,
    },
    "lag": {**SMALL, "attention_resolutions": [4], "scale_shift_norm": False, "conditioning": "lag"},
}

CONDITIONINGS = {
    "add": {"denoiser": {**SMALL, "film": "add"}},
    "concat": {"denoiser": {**SMALL, "film": "concat"}},
    "add_before_norm": {"denoiser": {**SMALL, "film": "add", "scale_shift_norm": False}},
    "lag": {
        "denoiser": {**SMALL, "attention_resolutions": [8], "conditioning": "lag"},
        "encoder": {"pool": "patches"},
    },
    "unconditional": {"denoiser": SMALL, "encoder": {"architecture": "none"}},
    "unconditional_concat": {"denoiser": {**SMALL, "film": "concat"}, "encoder": {"architecture": "none"}},
}

ENCODERS = {
    "mean": {"encoder": {**SMALL, "pool": "mean"}},
    "timestep": {"encoder": {**SMALL, "pool": "mean", "time_token": "timestep", "attention_resolutions": [8]}},
    "head": {
        "encoder": {**SMALL, "pool": "mean", "head_hidden_dim": 10, "projection_dim": 5, "projection_hidden_dim": 7}
    },
    "positions": {"encoder": {**SMALL, "pool": "none", "head_hidden_dim": 10, "projection_dim": 5}},
    "tokens": {
        "encoder": {**SMALL, "pool": "none", "head_hidden_dim": 10, "projection_dim": 5, "time_token": "timestep"},
        "denoiser": {"conditioning": "lag"},
    },
}


def unet_config(denoiser: dict, **parts: dict) -> VFSConfig:
    encoder = {"pool": "patches"} if denoiser.get("conditioning") == "lag" else {}
    return tiny_config(denoiser=denoiser, encoder=encoder, **parts)


@torch.no_grad()
def stirred(module: nn.Module) -> nn.Module:
    """The module with noise in all its parameters, and so in those that begin as zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.15)
    return module.eval()


def given(config: VFSConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(1)
    context = torch.randn(2, *config.context_shape) if config.context_shape else None
    return torch.randn(2, config.denoiser_channels, 8, 8), torch.tensor([3, 7]), context


GROUPS = {8: 4, 12: 6, 16: 8, 24: 12, 32: 16, 36: 18, 48: 24, 60: 30, 72: 24}
"""Of GroupNorm, at the widths of these tests."""


class Reference:
    """guided-diffusion's UNet in functions of a state_dict, with cross-attention where a context is given."""

    def __init__(self, weights: dict[str, Tensor], part: dict, modulated: bool = True) -> None:
        self.weights, self.part, self.modulated = weights, part, modulated
        self.scale_shift = part.get("scale_shift_norm", True)
        self.by_block = part.get("resblock_updown", False)
        self.levels = len(part["channel_mult"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.group_norm(x, GROUPS[x.shape[1]], weight, bias, eps=1e-5)

    def embedding(self, t: Tensor) -> Tensor:
        half = self.part["channels"] // 2
        angles = t[:, None] * torch.tensor([10000 ** (-i / half) for i in range(half)])
        hidden = F.silu(self.linear("time_embed.fc1", torch.cat([angles.cos(), angles.sin()], dim=1)))
        return self.linear("time_embed.fc2", hidden)

    def resize(self, x: Tensor, direction: str) -> Tensor:
        if direction == "down":
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if direction == "up" else x

    def res(self, name: str, x: Tensor, embedding: Tensor | None, direction: str = "") -> Tensor:
        hidden = self.conv(f"{name}.conv1", self.resize(F.silu(self.norm(f"{name}.norm1", x)), direction))
        if not self.modulated:
            hidden = self.norm(f"{name}.norm2", hidden)
        else:
            modulation = self.linear(f"{name}.modulation", F.silu(embedding))[:, :, None, None]
            if self.scale_shift:
                width = hidden.shape[1]
                hidden = self.norm(f"{name}.norm2", hidden) * (1 + modulation[:, :width]) + modulation[:, width:]
            else:
                hidden = self.norm(f"{name}.norm2", hidden + modulation)
        x = self.resize(x, direction)
        if x.shape[1] != hidden.shape[1]:
            x = self.conv(f"{name}.skip", x)
        return x + self.conv(f"{name}.conv2", F.silu(hidden))

    def softmax_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Head by head: (b, l, d), (b, m, d), (b, m, d) -> (b, l, d)."""
        outs = []
        for each in zip(*(x.chunk(self.part["heads"], dim=-1) for x in (q, k, v)), strict=True):
            scores = each[0] @ each[1].transpose(1, 2) / math.sqrt(each[0].shape[-1])
            outs.append(torch.softmax(scores, dim=-1) @ each[2])
        return torch.cat(outs, dim=-1)

    def attention(self, name: str, x: Tensor, context: Tensor | None) -> Tensor:
        q, k, v = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.attn.norm", x).flatten(2).mT).chunk(3, dim=-1)
        x = x + self.linear(f"{name}.attn.out", self.softmax_attention(q, k, v)).mT.reshape(x.shape)
        if context is None:
            return x
        name = f"{name}.cross_attn"
        affine = self.weights[f"{name}.context_norm.weight"], self.weights[f"{name}.context_norm.bias"]
        k, v = self.linear(f"{name}.kv", F.layer_norm(context, context.shape[-1:], *affine, eps=1e-6)).chunk(2, dim=-1)
        q = self.linear(f"{name}.q", self.norm(f"{name}.norm", x).flatten(2).mT)
        return x + self.linear(f"{name}.out", self.softmax_attention(q, k, v)).mT.reshape(x.shape)

    def block(self, name: str, x: Tensor, embedding: Tensor | None, context: Tensor | None, attends: bool) -> Tensor:
        x = self.res(f"{name}.res", x, embedding)
        return self.attention(name, x, context) if attends else x

    def resample(self, name: str, x: Tensor, embedding: Tensor | None, direction: str) -> Tensor:
        if self.by_block:
            return self.res(f"{name}.resample", x, embedding, direction)
        if direction == "down":
            return self.conv(f"{name}.resample.conv", x, stride=2)
        return self.conv(f"{name}.resample.conv", self.resize(x, "up"))

    def attends(self, level: int) -> bool:
        return 8 // 2**level in self.part.get("attention_resolutions", [])

    def half(self, x: Tensor, embedding: Tensor | None, context: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        x = self.conv("conv_in", x)
        skips = [x]
        for level in range(self.levels):
            for i in range(self.part["num_res_blocks"]):
                x = self.block(f"down.{level}.blocks.{i}", x, embedding, context, self.attends(level))
                skips.append(x)
            if level < self.levels - 1:
                x = self.resample(f"down.{level}", x, embedding, "down")
                skips.append(x)
        x = self.block("middle.0", x, embedding, context, True)
        return self.block("middle.1", x, embedding, context, False), skips

    def whole(self, x: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        x, skips = self.half(x, embedding, context)
        for step in range(self.levels):
            attends = self.attends(self.levels - 1 - step)
            for i in range(self.part["num_res_blocks"] + 1):
                x = torch.cat([x, skips.pop()], dim=1)
                x = self.block(f"up.{step}.blocks.{i}", x, embedding, context, attends)
            if step < self.levels - 1:
                x = self.resample(f"up.{step}", x, embedding, "up")
        assert not skips
        return self.conv("conv_out", F.silu(self.norm("norm_out", x)))


def parameters_of_guided_diffusion(part: dict, out_channels: int) -> int:
    """Of its UNet for RGB images of 8 x 8, without what is made of labels."""
    base, mults, blocks = part["channels"], part["channel_mult"], part["num_res_blocks"]
    embedding = 4 * base

    def linear(i: int, o: int) -> int:
        return i * o + o

    def res(i: int, o: int) -> int:
        modulation = linear(embedding, 2 * o if part.get("scale_shift_norm", True) else o)
        return 2 * i + linear(9 * i, o) + modulation + 2 * o + linear(9 * o, o) + (linear(i, o) if i != o else 0)

    def attention(c: int) -> int:
        return 2 * c + linear(c, 3 * c) + linear(c, c)

    def at(level: int, c: int) -> int:
        return attention(c) if 8 >> level in part["attention_resolutions"] else 0

    def resample(c: int) -> int:
        return res(c, c) if part.get("resblock_updown", False) else linear(9 * c, c)

    width = base * mults[0]
    total = linear(base, embedding) + linear(embedding, embedding) + linear(9 * 3, width)
    skips = [width]
    for level, mult in enumerate(mults):
        for _ in range(blocks):
            total += res(width, base * mult) + at(level, base * mult)
            width = base * mult
            skips.append(width)
        if level < len(mults) - 1:
            total += resample(width)
            skips.append(width)
    total += 2 * res(width, width) + attention(width)
    for level, mult in reversed(list(enumerate(mults))):
        for _ in range(blocks + 1):
            total += res(width + skips.pop(), base * mult) + at(level, base * mult)
            width = base * mult
        if level:
            total += resample(width)
    return total + 2 * width + linear(9 * width, out_channels)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["scale_shift", "resblock_updown", "wide_first"])
def test_parameters_are_as_many_as_guided_diffusions(name: str) -> None:
    unet = UNet(unet_config(ARCHITECTURES[name]))
    assert count(unet) - count(unet.context_proj) == parameters_of_guided_diffusion(ARCHITECTURES[name], 3)


def test_published_models_have_their_numbers_of_parameters() -> None:
    published = {"num_res_blocks": 2, "resblock_updown": True, "attention_resolutions": [32, 16, 8], "heads": 4}
    at_256 = {**SMALL, **published, "channels": 256, "channel_mult": [1, 1, 2, 2, 4, 4]}
    at_64 = {**SMALL, **published, "channels": 192, "channel_mult": [1, 2, 3, 4], "num_res_blocks": 3, "heads": 3}
    for size, denoiser, parameters in ((256, at_256, 552_814_086), (64, at_64, 295_136_454)):
        sets, diffusion = {"image_size": size}, {"variance": "learned_range"}
        config = tiny_config(sets=sets, denoiser=denoiser, encoder={"architecture": "none"}, diffusion=diffusion)
        with torch.device("meta"):
            unet = UNet(config)
            assert count(unet) == parameters
            x_t, t = torch.empty(1, 3, size, size), torch.empty(1, dtype=torch.long)
            assert unet(x_t, t, None).shape == (1, 6, size, size)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_output_is_that_of_the_formulas(name: str) -> None:
    part = ARCHITECTURES[name]
    config = unet_config(part)
    unet = stirred(UNet(config))
    x_t, t, context = given(config)
    assert context is not None
    reference = Reference(unet.state_dict(), part)
    embedding, lag = reference.embedding(t), part.get("conditioning") == "lag"
    if part.get("film") == "concat":
        embedding = reference.linear("context_proj", torch.cat([embedding, context], dim=1))
    elif not lag:
        embedding = embedding + reference.linear("context_proj", context)
    expected = reference.whole(x_t, embedding, context if lag else None)
    assert expected.std() > 0.1
    torch.testing.assert_close(unet(x_t, t, context), expected, rtol=1e-4, atol=1e-5)


def test_groups_of_the_norm_are_32_but_hold_two_channels_at_least() -> None:
    groups = {dim: group_norm(dim).num_groups for dim in (1, 7, 8, 32, 36, 48, 64, 96, 128, 160, 200)}
    assert groups == {1: 1, 7: 1, 8: 4, 32: 16, 36: 18, 48: 24, 64: 32, 96: 32, 128: 32, 160: 32, 200: 25}


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_a_fresh_unet_is_zero_and_a_stirred_one_sees_all_it_is_given(name: str) -> None:
    config = tiny_config(**CONDITIONINGS[name])
    unet = UNet(config)
    x_t, t, context = given(config)
    assert unet(x_t, t, context).abs().max() == 0
    stirred(unet)
    output = unet(x_t, t, context)
    assert output.shape == x_t.shape
    for changed in (unet(x_t + torch.randn_like(x_t), t, context), unet(x_t, t + 1, context)):
        assert (changed - output).abs().max() > 1e-3
    if context is not None:
        assert (unet(x_t, t, context + torch.randn_like(context)) - output).abs().max() > 1e-3
    else:
        assert unet.context_proj is None


def test_residual_branches_of_fresh_networks_end_in_zeros_and_nothing_else_does() -> None:
    ends = ("conv2.weight", "attn.out.weight", "conv_out.weight")
    for module in (UNet(tiny_config(**CONDITIONINGS["lag"])), UNetEncoder(tiny_config(**ENCODERS["tokens"]))):
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                assert (parameter.abs().max() == 0) == name.endswith(ends), name


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_every_parameter_of_the_unet_has_a_gradient(name: str) -> None:
    config = tiny_config(**CONDITIONINGS[name])
    unet = stirred(UNet(config))
    assert_all_have_gradients(unet, unet(*given(config)))


def assert_all_have_gradients(module: nn.Module, output: Tensor) -> None:
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


def test_timesteps_are_rescaled_to_1000_where_asked_for() -> None:
    config = tiny_config(denoiser=SMALL)
    plain, rescaled = stirred(UNet(config)), UNet(tiny_config(denoiser=SMALL, diffusion={"rescale_timesteps": True}))
    rescaled.load_state_dict(plain.state_dict())
    x_t, t, context = given(config)
    torch.testing.assert_close(rescaled(x_t, t, context), plain(x_t, 50 * t, context))


def test_a_learned_variance_doubles_the_channels() -> None:
    learned = tiny_config(denoiser=SMALL, diffusion={"variance": "learned_range", "clip_denoised": False})
    assert UNet(learned)(*given(learned)).shape == (2, 6, 8, 8)


def test_in_latents_channels_and_resolutions_are_theirs() -> None:
    attends = {**SMALL, "attention_resolutions": [8]}
    pixels = tiny_config(denoiser=attends, encoder={**attends, "pool": "mean"}, diffusion={"clip_denoised": False})
    latents = LatentConfig(autoencoder="folder", channels=4, downsampling=2, encoder_input="latents")
    config = replace(pixels, sets=replace(pixels.sets, image_size=16), latent=latents)
    unet, encoder = UNet(config), UNetEncoder(config)
    assert unet(*given(config)).shape == (2, 4, 8, 8)
    assert encoder(torch.randn(2, 5, 4, 8, 8)).shape == (2, 16)
    for module in (unet, encoder):
        assert module.attends == [True, False]


@pytest.mark.parametrize("name", ENCODERS)
def test_the_encoder_is_half_a_unet_a_mean_over_the_set_and_a_head(name: str) -> None:
    config = tiny_config(**ENCODERS[name])
    encoder = stirred(UNetEncoder(config))
    x_set, t = torch.randn(2, 5, 3, 8, 8), torch.tensor([3, 7])
    timed = config.encoder.time_token == "timestep"
    reference = Reference(encoder.state_dict(), {**ENCODERS[name]["encoder"], "resblock_updown": True}, timed)
    each = []
    for i in range(5):
        smallest, _ = reference.half(x_set[:, i], reference.embedding(t) if timed else None)
        positions = F.silu(reference.norm("head_norm", smallest)).flatten(2).mT
        each.append(reference.linear("head", positions))
    tokens = torch.stack(each).mean(dim=0)
    out = tokens if config.encoder.pool == "none" else tokens.mean(dim=1)
    if config.encoder.head_hidden_dim:
        hidden = F.gelu(reference.linear("head_mlp.fc1", out), approximate="tanh")
        out = reference.linear("head_mlp.fc2", hidden)
    if name == "positions":
        out = out.mean(dim=1)
    hidden_dim = config.encoder.projection_hidden_dim or config.encoder.projection_dim
    for layer in ("fc1", "fc2", "fc3") if config.encoder.projection_dim else ():
        out = reference.linear(f"projection.{layer}", out)
        assert out.shape[-1] == (config.encoder.projection_dim if layer == "fc3" else hidden_dim)
        out = out if layer == "fc3" else F.gelu(out, approximate="tanh")
    context = encoder(x_set, t)
    assert context.shape == (2, *config.context_shape)
    torch.testing.assert_close(context, out, rtol=1e-4, atol=1e-5)
    assert_all_have_gradients(encoder, context)


def test_the_encoders_order_of_the_set_does_not_matter_and_shots_say_how_many_count() -> None:
    encoder = stirred(UNetEncoder(tiny_config(**ENCODERS["tokens"])))
    x_set, t, shots = torch.randn(2, 5, 3, 8, 8, requires_grad=True), torch.tensor([3, 7]), torch.tensor([2, 5])
    torch.testing.assert_close(encoder(x_set, t), encoder(x_set[:, torch.randperm(5)], t))
    context = encoder(x_set, t, shots)
    torch.testing.assert_close(context[0], encoder(x_set[:1, :2], t[:1])[0])
    torch.testing.assert_close(context[1], encoder(x_set[1:], t[1:])[0])
    context.sum().backward()
    counts = x_set.grad.flatten(2).abs().amax(dim=2) > 0
    assert counts.tolist() == [[True, True, False, False, False], [True] * 5]


def test_the_encoder_sees_the_timestep_of_its_set_and_cannot_forget_it() -> None:
    encoder = stirred(UNetEncoder(tiny_config(**ENCODERS["timestep"])))
    x_set = torch.randn(2, 3, 3, 8, 8)
    early, late, mixed = (encoder(x_set, torch.tensor(t)) for t in ([0, 0], [15, 15], [0, 15]))
    assert (early - late).abs().amax(dim=1).min() > 1e-3
    torch.testing.assert_close(mixed, torch.stack([early[0], late[1]]))
    with pytest.raises(ValueError, match="needs the timestep t"):
        encoder(x_set)


def test_a_fresh_encoders_context_is_not_zero() -> None:
    encoder = UNetEncoder(tiny_config(**ENCODERS["mean"]))
    context = encoder(torch.randn(2, 3, 3, 8, 8))
    assert context.std() > 1e-2
    assert (context[0] - context[1]).abs().max() > 1e-3


def test_both_compile_whole() -> None:
    few = {**SMALL, "channel_mult": [1]}
    config = tiny_config(
        denoiser={**few, "conditioning": "lag"}, encoder={**few, "pool": "none", "time_token": "timestep"}
    )
    encoder, unet = stirred(UNetEncoder(config)), stirred(UNet(config))
    x_t, t, _ = given(config)
    x_set, shots = torch.randn(2, 3, 3, 8, 8), torch.tensor([2, 3])

    def both(x_t: Tensor, t: Tensor, x_set: Tensor, shots: Tensor) -> Tensor:
        return unet(x_t, t, encoder(x_set, t, shots))

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x_t, t, x_set, shots), both(x_t, t, x_set, shots))


def test_both_work_in_bfloat16_and_as_copies() -> None:
    config = tiny_config(denoiser={**SMALL, "conditioning": "lag"}, encoder=ENCODERS["tokens"]["encoder"])
    unet, encoder = (copy.deepcopy(stirred(module)) for module in (UNet(config), UNetEncoder(config)))
    x_t, t, _ = given(config)
    x_set, shots = torch.randn(2, 3, 3, 8, 8), torch.tensor([2, 3])
    expected = unet(x_t, t, encoder(x_set, t, shots))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = unet(x_t, t, encoder(x_set, t, shots))
    assert output.dtype == torch.bfloat16
    assert F.mse_loss(output.float(), expected) < 1e-2 * expected.var()
