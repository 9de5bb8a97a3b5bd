"""Sizes within a UNet that follow from its widths."""

from __future__ import annotations

EMBEDDING_RATIO = 4
"""Width of the embedding that modulates the residual blocks, over the width of the first level."""

_MAX_GROUPS = 32


def norm_groups(dim: int) -> int:
    """Groups of a GroupNorm: at most 32, with two channels or more in each.

    A group of one channel would subtract all that an embedding adds to it, which is alike at every position.
    """
    return max(groups for groups in range(1, _MAX_GROUPS + 1) if dim % groups == 0 and (groups == 1 or groups < dim))
