"""The Flax twin: the same models in JAX, from the same configurations and weights, without torch."""

try:
    import flax.linen  # noqa: F401
    import jax  # noqa: F401
except ImportError as error:
    raise ImportError("The Flax twin needs jax and flax: pip install 'lightning_vfs[jax]'.") from error

from lightning_vfs.flax.model import FlaxVFSDDPM

__all__ = ["FlaxVFSDDPM"]
