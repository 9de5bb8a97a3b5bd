"""Names and layouts of the JAX system's parameters, beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lightning_vfs.core.config import VFSConfig

Convert = Callable[[np.ndarray], np.ndarray]


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _dense(value: np.ndarray) -> np.ndarray:
    """Flax kernels are (in, out), torch's (out, in)."""
    return value.T


def _conv(value: np.ndarray) -> np.ndarray:
    return rearrange(value, "h w i o -> o i h w")


def _heads_in(value: np.ndarray) -> np.ndarray:
    return rearrange(value, "i h d -> (h d) i")


def _heads_bias(value: np.ndarray) -> np.ndarray:
    return rearrange(value, "h d -> (h d)")


def _heads_out(value: np.ndarray) -> np.ndarray:
    return rearrange(value, "h d o -> o (h d)")


def parameter_table(config: VFSConfig) -> dict[str, list[tuple[str, Convert]]]:
    """Our name -> the JAX system's paths (several are concatenated) and how each is laid out here."""
    table: dict[str, list[tuple[str, Convert]]] = {}

    def dense(ours: str, path: str, bias: bool = True) -> None:
        table[f"{ours}.weight"] = [(f"{path}/kernel", _dense)]
        if bias:
            table[f"{ours}.bias"] = [(f"{path}/bias", _same)]

    def norm(ours: str, path: str) -> None:
        table[f"{ours}.weight"] = [(f"{path}/scale", _same)]
        table[f"{ours}.bias"] = [(f"{path}/bias", _same)]

    _encoder(table, dense, norm, config)
    _denoiser(table, dense, config)
    if config.encoder.context == "variational":
        dense("posterior.fc1", "posterior/params/Dense_0")
        dense("posterior.fc2", "posterior/params/Dense_1")
    return table


def _encoder(table: dict, dense: Callable[..., None], norm: Callable[..., None], config: VFSConfig) -> None:
    path = "encoder/params"
    table["encoder.cls_token"] = [(f"{path}/cls_token", _same)]
    table["encoder.pos_embedding"] = [(f"{path}/pos_embedding", _same)]
    norm("encoder.to_patch_embedding.norm", f"{path}/to_patch_embedding/norm")
    dense("encoder.to_patch_embedding.proj", f"{path}/to_patch_embedding/proj")
    norm("encoder.head_norm", f"{path}/mlp_norm")
    dense("encoder.head", f"{path}/mlp_dense")
    if config.encoder.time_token == "timestep":
        dense("encoder.time_embed.fc1", "time_embed/params/Dense_0")
        dense("encoder.time_embed.fc2", "time_embed/params/Dense_1")
        dense("encoder.to_time_embedding", f"{path}/to_time_embedding")
    for i in range(config.encoder.depth):
        ours, layer = f"encoder.layers.{i}", f"{path}/transformer/layer_{i}"
        norm(f"{ours}.norm1", f"{layer}/LayerNorm_0")
        norm(f"{ours}.norm2", f"{layer}/LayerNorm_1")
        table[f"{ours}.attn.temperature"] = [(f"{layer}/LSA_0/temperature", _same)]
        dense(f"{ours}.attn.to_qkv", f"{layer}/LSA_0/Dense_0", bias=False)
        dense(f"{ours}.attn.to_out", f"{layer}/LSA_0/Dense_1")
        dense(f"{ours}.mlp.fc1", f"{layer}/FeedForward_0/Dense_0")
        dense(f"{ours}.mlp.fc2", f"{layer}/FeedForward_0/Dense_1")


def _denoiser(table: dict, dense: Callable[..., None], config: VFSConfig) -> None:
    path = "dit/params"
    table["denoiser.pos_embed"] = [(f"{path}/pos_embed", _same)]
    table["denoiser.patch_embed.weight"] = [(f"{path}/PatchEmbed_0/Conv_0/kernel", _conv)]
    table["denoiser.patch_embed.bias"] = [(f"{path}/PatchEmbed_0/Conv_0/bias", _same)]
    dense("denoiser.time_embed.fc1", f"{path}/TimestepEmbedder_0/Dense_0")
    dense("denoiser.time_embed.fc2", f"{path}/TimestepEmbedder_0/Dense_1")
    dense("denoiser.context_proj", f"{path}/Dense_0")
    dense("denoiser.final.modulation", f"{path}/FinalLayer_0/Dense_0")
    dense("denoiser.final.proj", f"{path}/FinalLayer_0/Dense_1")
    for i in range(config.denoiser.depth):
        ours, block = f"denoiser.blocks.{i}", f"{path}/DiTBlock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        qkv = ("query", "key", "value")
        table[f"{ours}.attn.qkv.weight"] = [(f"{attention}/{part}/kernel", _heads_in) for part in qkv]
        table[f"{ours}.attn.qkv.bias"] = [(f"{attention}/{part}/bias", _heads_bias) for part in qkv]
        table[f"{ours}.attn.out.weight"] = [(f"{attention}/out/kernel", _heads_out)]
        table[f"{ours}.attn.out.bias"] = [(f"{attention}/out/bias", _same)]
        dense(f"{ours}.modulation", f"{block}/Dense_0")
        dense(f"{ours}.mlp.fc1", f"{block}/MlpBlock_0/Dense_0")
        dense(f"{ours}.mlp.fc2", f"{block}/MlpBlock_0/Dense_1")
        if config.denoiser.normalize_condition:
            table[f"{ours}.context_scale"] = [(f"{block}/context_scale", _same)]


def state_dict_from_jax(params: Mapping[str, np.ndarray], config: VFSConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Our state_dict of a flat JAX tree, and what is wrong with the tree: missing and extra leaves."""
    table = parameter_table(config)
    needed = {path for parts in table.values() for path, _ in parts}
    wrong = [f"missing: {path}" for path in sorted(needed - set(params))]
    wrong += [f"extra: {path}" for path in sorted(set(params) - needed)]
    if wrong:
        return {}, wrong
    state_dict = {}
    for ours, parts in table.items():
        laid_out = [np.asarray(convert(params[path]), dtype=np.float32) for path, convert in parts]
        # `copy` and not `ascontiguousarray`, which would turn a scalar's shape () into (1,).
        joined = np.concatenate(laid_out) if len(laid_out) > 1 else laid_out[0].copy(order="C")
        state_dict[ours] = torch.from_numpy(joined)
    return state_dict, []
