"""Precision and recall whose images leave their own support out, and their replicates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK = 2**24
"""Distances held at a time."""
SPARE = 12
"""Neighbours kept beyond those that a radius needs, for the ones that a group takes away."""


def precision_recall(
    generated: Tensor,
    real: Tensor,
    neighborhood: int,
    groups_generated: Tensor,
    groups_real: Tensor,
    count: int,
    left_out: Tensor,
) -> dict[str, list[float]]:
    """Improved precision and recall (Kynkäänniemi et al. 2019), and without each group of images in turn.

    Precision is the share of generated images within the ball of a real one, recall the reverse; a ball reaches to the
    nearest neighbours of its own kind. `novel_precision` and `novel_recall` compare no generated image with those real
    ones that it was made from.

    Args:
        generated: (n, d), float32.
        real: (m, d).
        neighborhood: neighbours that a ball reaches to.
        groups_generated: group of each generated image (n,), from 0.
        groups_real: of each real image (m,).
        count: of groups, G.
        left_out: rows of the real features (n, k) that a generated image was made from; -1 for none.

    Returns:
        1 + G numbers by name; NaN where too few images are left for a radius.
    """
    radii_generated = _radii(generated, neighborhood, groups_generated, count)
    radii_real = _radii(real, neighborhood, groups_real, count)
    n, m, columns = len(generated), len(real), 1 + count
    precise, recalled = torch.zeros(2, n, columns).bool(), torch.zeros(2, m, columns).bool()
    made_from, kept = left_out[left_out >= 0], (left_out >= 0).sum(dim=1)
    rows = torch.arange(n).repeat_interleave(kept)
    step = max(1, CHUNK // n)
    for start in range(0, m, step):
        end = min(m, start + step)
        apart = torch.cdist(generated, real[start:end])
        here = (made_from >= start) & (made_from < end)
        novel = apart.clone()
        novel[rows[here], made_from[here] - start] = math.inf
        for kind, distances in enumerate((apart, novel)):
            for column in range(columns):
                precise[kind, :, column] |= (distances <= radii_real[start:end, column]).any(dim=1)
                recalled[kind, start:end, column] = (distances <= radii_generated[:, column, None]).any(dim=0)
    shares = _shares(precise, radii_generated), _shares(recalled, radii_real)
    # Without enough neighbours of one kind neither figure is known.
    for other, these in ((radii_real, shares[0]), (radii_generated, shares[1])):
        these[:, (other < 0).all(dim=0)] = math.nan
    names = ("precision", "novel_precision"), ("recall", "novel_recall")
    return {
        name: values.tolist()
        for pair, both in zip(names, shares, strict=True)
        for name, values in zip(pair, both, strict=True)
    }


def _shares(inside: Tensor, radii: Tensor) -> Tensor:
    """Share of the images (kinds, n, columns) that are in a column, where their radius is not negative."""
    there = radii >= 0
    return (inside & there).sum(dim=1) / there.sum(dim=0).double()


def _radii(features: Tensor, neighborhood: int, groups: Tensor, count: int) -> Tensor:
    """Distance of each image's nearest neighbours, (n, 1 + count); -1 where the image is left out, or has too few."""
    found = features.new_full((len(features), 1 + count), -1.0)
    wanted = neighborhood + 1  # the image itself is its own first
    step = max(1, CHUNK // len(features))
    for start in range(0, len(features), step):
        distances = torch.cdist(features[start : start + step], features)
        near, which = distances.topk(min(wanted + SPARE, len(features)), largest=False)
        own = groups[start : start + step]
        for column in range(1 + count):
            there = groups[which] != column - 1
            place = (there.cumsum(dim=1) < wanted).sum(dim=1)
            known = place < near.shape[1]
            radius = near.gather(1, place.clamp(max=near.shape[1] - 1)[:, None])[:, 0]
            more = (~known & (own != column - 1)).nonzero()[:, 0]
            others = groups != column - 1
            if len(more) and int(others.sum()) >= wanted:
                radius[more] = distances[more][:, others].kthvalue(wanted, dim=1).values
                known[more] = True
            found[start : start + step, column] = radius.masked_fill(~known | (own == column - 1), -1.0)
    return found
