"""Models to and from other formats. `from_jax` is imported when it is used: it needs the networks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_vfs.interop.jax import from_jax

__all__ = ["from_jax"]


def __getattr__(name: str) -> Any:
    if name == "from_jax":
        from lightning_vfs.interop.jax import from_jax

        return from_jax
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
