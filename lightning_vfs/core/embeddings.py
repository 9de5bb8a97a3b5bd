"""Sinusoidal embeddings of timesteps and of patch positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from jaxtyping import Float, Num


def timestep_embedding(t: Num[Any, " b"], dim: int, dtype: Any) -> Float[Any, "b {dim}"]:
    """Sinusoids of timesteps, cosines first: (b,) -> (b, dim).

    Frequencies are 10000**(-i / half), i from 0 to half - 1, half = dim // 2 (Vaswani et al. 2017, section 3.5, in the
    order of Ho et al. 2020); an odd dim ends with a zero.
    """
    xp = array_namespace(t)
    half = dim // 2
    frequencies = xp.exp(xp.arange(half, dtype=dtype, device=device(t)) * (-math.log(10000) / half))
    angles = xp.astype(t, dtype)[:, None] * frequencies[None]
    parts = [xp.cos(angles), xp.sin(angles)]
    if dim % 2:
        parts.append(xp.zeros_like(angles[:, :1]))
    return xp.concat(parts, axis=-1)


def sincos_positions(dim: int, side: int) -> Float[np.ndarray, "{side*side} {dim}"]:
    """Two-dimensional sine-cosine positions of a side x side grid, width coordinate first: float32 (side**2, dim).

    As in MAE (He et al. 2022): half of the features encode the column, half the row; dim is a multiple of 4.
    """
    frequencies = 10000 ** (-np.arange(dim // 4, dtype=np.float64) / (dim // 4))
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    parts = [
        function(coordinate.reshape(-1, 1) * frequencies)
        for coordinate in (columns, rows)
        for function in (np.sin, np.cos)
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)
