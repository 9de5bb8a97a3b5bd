"""Parameters here and the leaves of the JAX tree that they correspond to, on NumPy arrays, in both directions.

The tree's names are the JAX system's for the networks that it has: the encoder `set_vit`, a `dit` with `film`
conditioning, a Gaussian context. Networks that only exist here keep their names there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightning_vfs.core.checks import is_path
from lightning_vfs.core.config import VFSConfig
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.interop.parameter import ParameterTable
from lightning_vfs.interop.unet_parameters import unet, unet_encoder

Arrays = Mapping[str, np.ndarray]


def parameter_table(config: VFSConfig) -> ParameterTable:
    """All parameters of a model, in the order in which images go through it.

    Raises:
        ConfigError: a custom network, whose parameters are unknown here, or one that JAX does not have.
    """
    table, encoder = ParameterTable(), config.encoder
    for architecture in (encoder.architecture, config.denoiser.architecture):
        if is_path(architecture):
            raise ConfigError(f"{architecture} is a custom torch module: there is no such network in JAX.")
    match encoder.architecture:
        case "set_vit" | "vit":
            _transformer_encoder(table, config)
        case "unet":
            unet_encoder(table, config)
        case "set_tokens":
            raise ConfigError("encoder.architecture is 'set_tokens': there is no such network in JAX.")
        case "class_label":
            table.same("encoder.table", "encoder/params/table")
    if encoder.projection_dim:
        for i in range(3):
            table.dense(f"encoder.projection.fc{i + 1}", f"projection/params/Dense_{i}")
    match encoder.context:
        case "variational":
            table.dense("posterior.fc1", "posterior/params/Dense_0")
            table.dense("posterior.fc2", "posterior/params/Dense_1")
        case "variational_discrete":
            table.dense("posterior.logits", "posterior/params/logits")
            table.same("posterior.codebook", "posterior/params/codebook")
    if encoder.context_dropout:
        table.same("null_context", "null_context")
    if config.denoiser.architecture == "dit":
        _dit(table, config)
    else:
        unet(table, config)
    return table


def _transformer_encoder(table: ParameterTable, config: VFSConfig) -> None:
    path, attention = "encoder/params", "LSA_0" if config.encoder.architecture == "set_vit" else "EncoderAttention_0"
    table.norm("encoder.to_patch_embedding.norm", f"{path}/to_patch_embedding/norm")
    table.dense("encoder.to_patch_embedding.proj", f"{path}/to_patch_embedding/proj")
    table.same("encoder.cls_token", f"{path}/cls_token")
    if config.encoder.time_token == "timestep":
        table.dense("encoder.time_embed.fc1", "time_embed/params/Dense_0")
        table.dense("encoder.time_embed.fc2", "time_embed/params/Dense_1")
        table.dense("encoder.to_time_embedding", f"{path}/to_time_embedding")
    table.same("encoder.pos_embedding", f"{path}/pos_embedding")
    for i in range(config.encoder.depth):
        ours, layer = f"encoder.layers.{i}", f"{path}/transformer/layer_{i}"
        table.norm(f"{ours}.norm1", f"{layer}/LayerNorm_0")
        if config.encoder.architecture == "set_vit":
            table.scalar(f"{ours}.attn.temperature", f"{layer}/{attention}/temperature")
        table.dense(f"{ours}.attn.to_qkv", f"{layer}/{attention}/Dense_0", bias=False)
        table.dense(f"{ours}.attn.to_out", f"{layer}/{attention}/Dense_1")
        table.norm(f"{ours}.norm2", f"{layer}/LayerNorm_1")
        table.dense(f"{ours}.mlp.fc1", f"{layer}/FeedForward_0/Dense_0")
        table.dense(f"{ours}.mlp.fc2", f"{layer}/FeedForward_0/Dense_1")
    table.norm("encoder.head_norm", f"{path}/mlp_norm")
    if config.encoder.head_hidden_dim:
        table.dense("encoder.head.fc1", f"{path}/mlp_head_ff/Dense_0")
        table.dense("encoder.head.fc2", f"{path}/mlp_head_ff/Dense_1")
    else:
        table.dense("encoder.head", f"{path}/mlp_dense")


def _dit(table: ParameterTable, config: VFSConfig) -> None:
    path, denoiser = "dit/params", config.denoiser
    table.conv("denoiser.patch_embed", f"{path}/PatchEmbed_0/Conv_0")
    table.same("denoiser.pos_embed", f"{path}/pos_embed")
    table.dense("denoiser.time_embed.fc1", f"{path}/TimestepEmbedder_0/Dense_0")
    table.dense("denoiser.time_embed.fc2", f"{path}/TimestepEmbedder_0/Dense_1")
    if denoiser.conditioning == "film" and config.encoder.context_dim:
        table.dense("denoiser.context_proj", f"{path}/Dense_0")
    for i in range(denoiser.depth):
        ours, block = f"denoiser.blocks.{i}", f"{path}/DiTBlock_{i}"
        if denoiser.normalize_condition:
            table.same(f"{ours}.context_scale", f"{block}/context_scale")
        table.dense(f"{ours}.modulation", f"{block}/Dense_0")
        table.attention(f"{ours}.attn", f"{block}/MultiHeadDotProductAttention_0", denoiser.heads)
        if denoiser.attends_to_context(i):
            table.cross_attention(f"{ours}.cross_attn", f"{block}/cross_attn")
        table.dense(f"{ours}.mlp.fc1", f"{block}/MlpBlock_0/Dense_0")
        table.dense(f"{ours}.mlp.fc2", f"{block}/MlpBlock_0/Dense_1")
    table.dense("denoiser.final.modulation", f"{path}/FinalLayer_0/Dense_0")
    table.dense("denoiser.final.proj", f"{path}/FinalLayer_0/Dense_1")


def to_jax_params(state_dict: Arrays, config: VFSConfig) -> dict[str, np.ndarray]:
    """The state_dict as leaves of the JAX tree, contiguous, by paths such as `dit/params/Dense_0/kernel`."""
    return {path: np.array(leaf, order="C") for path, leaf in _leaves(state_dict, config).items()}


def jax_shapes(shapes: Mapping[str, tuple[int, ...]], config: VFSConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the leaves of a model whose state_dict has these shapes."""
    # Views of one number: nothing of a model's size is made.
    views = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    return {path: leaf.shape for path, leaf in _leaves(views, config).items()}


def _leaves(state_dict: Arrays, config: VFSConfig) -> dict[str, np.ndarray]:
    return {
        path: leaf
        for parameter in parameter_table(config)
        for path, leaf in parameter.to_jax(state_dict[parameter.name]).items()
    }


def from_jax_params(params: Arrays, config: VFSConfig) -> dict[str, np.ndarray]:
    """The state_dict from the JAX tree's leaves, all of which must be there."""
    return {
        parameter.name: parameter.from_jax([params[path] for path in parameter.paths])
        for parameter in parameter_table(config)
    }


def wrong_leaves(params: Arrays, expected: Mapping[str, tuple[int, ...]], config: VFSConfig) -> list[str]:
    """What is missing, extra or misshaped, with the name on both sides; one line each.

    Args:
        params: leaves by path.
        expected: shapes by path, as `jax_shapes` gives them.
    """
    ours = {path: parameter.name for parameter in parameter_table(config) for path in parameter.paths}
    wrong = [f"missing: {path} ({ours[path]})" for path in expected if path not in params]
    wrong += [f"extra: {path} {params[path].shape}" for path in sorted(params) if path not in expected]
    wrong += [
        f"misshaped: {path} ({ours[path]}) is {params[path].shape}, expected {shape}"
        for path, shape in expected.items()
        if path in params and params[path].shape != shape
    ]
    return wrong
