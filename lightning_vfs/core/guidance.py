"""Classifier-free guidance."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Float


def guided(
    conditional: Float[Any, "b outputs h w"], unconditional: Float[Any, "b outputs h w"], scale: Any, channels: int
) -> Float[Any, "b outputs h w"]:
    """The model output that sampling goes by: unconditional + scale * (conditional - unconditional).

    Ho and Salimans 2022, eq. 6, whose w is `scale` - 1. A scale of 1 gives `conditional` to the bit.

    Args:
        conditional: model output with the condition, (b, channels or 2 * channels, h, w).
        unconditional: model output without it, of the same shape.
        scale: a float, or a scalar of the outputs' array library.
        channels: of the images. A learned variance, in the channels behind them, is the conditional one.
    """
    xp = array_namespace(conditional, unconditional)
    # A float64 of NumPy, which is a float too, would make float64 of float32.
    scale = float(scale) if isinstance(scale, int | float) else xp.astype(scale, conditional.dtype)
    prediction = conditional[:, :channels]
    prediction = prediction + (scale - 1) * (prediction - unconditional[:, :channels])
    if conditional.shape[1] == channels:
        return prediction
    return xp.concat([prediction, conditional[:, channels:]], axis=1)
