"""Models to and from other formats. `from_jax` and `to_jax` are imported when they are used: they need the networks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_vfs.interop.jax import from_jax, to_jax

__all__ = ["from_jax", "to_jax"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lightning_vfs.interop import jax

        return getattr(jax, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
