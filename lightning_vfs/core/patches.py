"""Images and stacked sets as sequences of patches."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from jaxtyping import Shaped


def stack_patches(x_set: Shaped[Any, "b s c h w"], patch_size: int) -> Shaped[Any, "b l patch_dim"]:
    """Patches of a set whose images are stacked as channels, channels outermost: (b, s, c, h, w) -> (b, l, p*p*c*s)."""
    return rearrange(x_set, "b s c (h p1) (w p2) -> b (h w) (p1 p2 c s)", p1=patch_size, p2=patch_size)


def unpatchify(patches: Shaped[Any, "b l patch_dim"], patch_size: int, channels: int) -> Shaped[Any, "b c h w"]:
    """Square images of their patches, laid out (p1 p2 c) each: (b, l, p*p*c) -> (b, c, h, w)."""
    side = round(patches.shape[1] ** 0.5)
    return rearrange(
        patches, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", h=side, p1=patch_size, p2=patch_size, c=channels
    )
