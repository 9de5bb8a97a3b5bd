"""A parameter here and the leaves of a JAX tree that it consists of, on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from einops import rearrange


@dataclass(frozen=True)
class Parameter:
    """A parameter (or buffer) here, and the leaves that it consists of.

    Args:
        name: in the state_dict.
        paths: of the leaves, joined by `/`; several are concatenated along the parameter's first axis.
        theirs, ours: axes of a leaf and of its part in the parameter, as einops names them.
        sizes: lengths of axes that one side merges.
    """

    name: str
    paths: tuple[str, ...]
    theirs: str = "..."
    ours: str = "..."
    sizes: Mapping[str, int] = field(default_factory=dict)

    def from_jax(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The float32 parameter from its leaves, contiguous."""
        parts = [self._rearranged(leaf, self.theirs, self.ours) for leaf in leaves]
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        # `array` and not `ascontiguousarray`, which would turn a scalar's shape () into (1,).
        return np.array(joined, dtype=np.float32, order="C")

    def to_jax(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Its leaves by path, as views."""
        value = np.atleast_1d(value)  # files of 0.1.0 have scalars
        parts = np.split(value, len(self.paths)) if len(self.paths) > 1 else [value]
        leaves = [self._rearranged(part, self.ours, self.theirs) for part in parts]
        return dict(zip(self.paths, leaves, strict=True))

    def _rearranged(self, value: np.ndarray, before: str, after: str) -> np.ndarray:
        return value if before == after else rearrange(np.asarray(value), f"{before} -> {after}", **self.sizes)


class ParameterTable(list[Parameter]):
    """Parameters in the order in which images go through a model; a method for every kind of layer."""

    def same(self, ours: str, path: str) -> None:
        """A parameter that is the same on both sides."""
        self.append(Parameter(ours, (path,)))

    def scalar(self, ours: str, path: str) -> None:
        """A number: () in flax, (1,) in torch."""
        self.append(Parameter(ours, (path,), "", "1"))

    def dense(self, ours: str, path: str, bias: bool = True) -> None:
        """A linear layer: a kernel of flax is (in, out), a weight of torch (out, in)."""
        self.append(Parameter(f"{ours}.weight", (f"{path}/kernel",), "i o", "o i"))
        if bias:
            self.same(f"{ours}.bias", f"{path}/bias")

    def conv(self, ours: str, path: str) -> None:
        """A convolution in two dimensions: (h, w, in, out) in flax, (out, in, h, w) in torch."""
        self.append(Parameter(f"{ours}.weight", (f"{path}/kernel",), "h w i o", "o i h w"))
        self.same(f"{ours}.bias", f"{path}/bias")

    def norm(self, ours: str, path: str) -> None:
        """Scale and bias of a normalisation."""
        self.same(f"{ours}.weight", f"{path}/scale")
        self.same(f"{ours}.bias", f"{path}/bias")

    def attention(self, ours: str, path: str, heads: int) -> None:
        """Self-attention: query, key and value are three leaves of flax and one parameter of torch."""
        qkv, sizes = [f"{path}/{part}" for part in ("query", "key", "value")], {"h": heads}
        kernels, biases = tuple(f"{part}/kernel" for part in qkv), tuple(f"{part}/bias" for part in qkv)
        self.append(Parameter(f"{ours}.qkv.weight", kernels, "i h d", "(h d) i", sizes))
        self.append(Parameter(f"{ours}.qkv.bias", biases, "h d", "(h d)", sizes))
        self.append(Parameter(f"{ours}.out.weight", (f"{path}/out/kernel",), "h d o", "o (h d)", sizes))
        self.same(f"{ours}.out.bias", f"{path}/out/bias")

    def cross_attention(self, ours: str, path: str) -> None:
        """Attention to the tokens of a context, with the same names on both sides."""
        for part in ("norm", "context_norm"):
            self.norm(f"{ours}.{part}", f"{path}/{part}")
        for part in ("q", "kv", "out"):
            self.dense(f"{ours}.{part}", f"{path}/{part}")
