"""Names and layouts of the JAX system's parameters beside ours, on NumPy arrays, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from einops import rearrange

from lightning_vfs.core.config import VFSConfig

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Parameter:
    """One of our parameters (or buffers), and the JAX system's leaves that it is made of.

    Args:
        name: ours, in a state_dict.
        paths: theirs, joined by `/`; several are concatenated along our first axis.
        theirs, ours: axes of a leaf and of its part in our parameter, as einops names them.
        sizes: lengths of axes that one side merges.
    """

    name: str
    paths: tuple[str, ...]
    theirs: str = "..."
    ours: str = "..."
    sizes: Mapping[str, int] = field(default_factory=dict)

    def from_jax(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Our float32 parameter of its leaves, contiguous."""
        parts = [self._rearranged(leaf, self.theirs, self.ours) for leaf in leaves]
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        # `array` and not `ascontiguousarray`, which would turn a scalar's shape () into (1,).
        return np.array(joined, dtype=np.float32, order="C")

    def to_jax(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Its leaves by path, as views."""
        parts = np.split(value, len(self.paths)) if len(self.paths) > 1 else [value]
        leaves = [self._rearranged(part, self.ours, self.theirs) for part in parts]
        return dict(zip(self.paths, leaves, strict=True))

    def _rearranged(self, value: np.ndarray, before: str, after: str) -> np.ndarray:
        return value if before == after else rearrange(value, f"{before} -> {after}", **self.sizes)


def parameter_table(config: VFSConfig) -> list[Parameter]:
    """All parameters of a model, in the order in which images go through it."""
    table: list[Parameter] = []

    def same(ours: str, path: str) -> None:
        table.append(Parameter(ours, (path,)))

    def dense(ours: str, path: str, bias: bool = True) -> None:
        # Flax kernels are (in, out), torch's weights (out, in).
        table.append(Parameter(f"{ours}.weight", (f"{path}/kernel",), "i o", "o i"))
        if bias:
            same(f"{ours}.bias", f"{path}/bias")

    def norm(ours: str, path: str) -> None:
        same(f"{ours}.weight", f"{path}/scale")
        same(f"{ours}.bias", f"{path}/bias")

    _encoder(same, dense, norm, config)
    if config.encoder.projection_dim:
        for i in range(3):
            dense(f"encoder.projection.fc{i + 1}", f"projection/params/Dense_{i}")
    if config.encoder.context == "variational":
        dense("posterior.fc1", "posterior/params/Dense_0")
        dense("posterior.fc2", "posterior/params/Dense_1")
    _denoiser(table, same, dense, config)
    return table


def _encoder(
    same: Callable[..., None], dense: Callable[..., None], norm: Callable[..., None], config: VFSConfig
) -> None:
    path = "encoder/params"
    norm("encoder.to_patch_embedding.norm", f"{path}/to_patch_embedding/norm")
    dense("encoder.to_patch_embedding.proj", f"{path}/to_patch_embedding/proj")
    same("encoder.cls_token", f"{path}/cls_token")
    if config.encoder.time_token == "timestep":
        dense("encoder.time_embed.fc1", "time_embed/params/Dense_0")
        dense("encoder.time_embed.fc2", "time_embed/params/Dense_1")
        dense("encoder.to_time_embedding", f"{path}/to_time_embedding")
    same("encoder.pos_embedding", f"{path}/pos_embedding")
    for i in range(config.encoder.depth):
        ours, layer = f"encoder.layers.{i}", f"{path}/transformer/layer_{i}"
        norm(f"{ours}.norm1", f"{layer}/LayerNorm_0")
        same(f"{ours}.attn.temperature", f"{layer}/LSA_0/temperature")
        dense(f"{ours}.attn.to_qkv", f"{layer}/LSA_0/Dense_0", bias=False)
        dense(f"{ours}.attn.to_out", f"{layer}/LSA_0/Dense_1")
        norm(f"{ours}.norm2", f"{layer}/LayerNorm_1")
        dense(f"{ours}.mlp.fc1", f"{layer}/FeedForward_0/Dense_0")
        dense(f"{ours}.mlp.fc2", f"{layer}/FeedForward_0/Dense_1")
    norm("encoder.head_norm", f"{path}/mlp_norm")
    if config.encoder.head_hidden_dim:
        dense("encoder.head.fc1", f"{path}/mlp_head_ff/Dense_0")
        dense("encoder.head.fc2", f"{path}/mlp_head_ff/Dense_1")
    else:
        dense("encoder.head", f"{path}/mlp_dense")


def _denoiser(table: list[Parameter], same: Callable[..., None], dense: Callable[..., None], config: VFSConfig) -> None:
    path, heads = "dit/params", {"h": config.denoiser.heads}
    table.append(
        Parameter("denoiser.patch_embed.weight", (f"{path}/PatchEmbed_0/Conv_0/kernel",), "h w i o", "o i h w")
    )
    same("denoiser.patch_embed.bias", f"{path}/PatchEmbed_0/Conv_0/bias")
    same("denoiser.pos_embed", f"{path}/pos_embed")
    dense("denoiser.time_embed.fc1", f"{path}/TimestepEmbedder_0/Dense_0")
    dense("denoiser.time_embed.fc2", f"{path}/TimestepEmbedder_0/Dense_1")
    dense("denoiser.context_proj", f"{path}/Dense_0")
    for i in range(config.denoiser.depth):
        ours, block = f"denoiser.blocks.{i}", f"{path}/DiTBlock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        qkv = [f"{attention}/{part}" for part in ("query", "key", "value")]
        kernels, biases = tuple(f"{part}/kernel" for part in qkv), tuple(f"{part}/bias" for part in qkv)
        if config.denoiser.normalize_condition:
            same(f"{ours}.context_scale", f"{block}/context_scale")
        dense(f"{ours}.modulation", f"{block}/Dense_0")
        table.append(Parameter(f"{ours}.attn.qkv.weight", kernels, "i h d", "(h d) i", heads))
        table.append(Parameter(f"{ours}.attn.qkv.bias", biases, "h d", "(h d)", heads))
        table.append(Parameter(f"{ours}.attn.out.weight", (f"{attention}/out/kernel",), "h d o", "o (h d)", heads))
        same(f"{ours}.attn.out.bias", f"{attention}/out/bias")
        dense(f"{ours}.mlp.fc1", f"{block}/MlpBlock_0/Dense_0")
        dense(f"{ours}.mlp.fc2", f"{block}/MlpBlock_0/Dense_1")
    dense("denoiser.final.modulation", f"{path}/FinalLayer_0/Dense_0")
    dense("denoiser.final.proj", f"{path}/FinalLayer_0/Dense_1")


def to_jax_params(state_dict: Arrays, config: VFSConfig) -> dict[str, np.ndarray]:
    """Our state_dict as the JAX system's leaves, contiguous, by paths such as `dit/params/Dense_0/kernel`."""
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
    """Our state_dict of the JAX system's leaves, all of which must be there."""
    return {
        parameter.name: parameter.from_jax([params[path] for path in parameter.paths])
        for parameter in parameter_table(config)
    }


def wrong_leaves(params: Arrays, expected: Mapping[str, tuple[int, ...]], config: VFSConfig) -> list[str]:
    """What is missing, extra or misshaped, with our name beside theirs; one line each.

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
