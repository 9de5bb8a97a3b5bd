"""Which images are left out together: those of a group of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lightning_vfs.data.images import Episodes
from lightning_vfs.evaluation.intervals import FEW_GROUPS, GROUPS, deal
from lightning_vfs.evaluation.real_images import RealImages
from lightning_vfs.metrics.jackknife import Groups

FEW_CLASSES = 3
"""Classes up to which groups are of episodes."""


def groups_of(class_names: Sequence[str], episodes: Episodes, real: RealImages) -> tuple[Groups, tuple[str, ...]]:
    """Groups of a split's classes, and notes on them; up to `FEW_CLASSES`, groups of images in turn.

    The class decides alone, so that replicates of two evaluations of the same classes are paired.
    """
    present = len(np.unique(episodes.labels))
    if present <= FEW_CLASSES:
        count = min(GROUPS, len(episodes))
        generated, chosen = (torch.arange(each) % count for each in (len(episodes), len(real.chosen)))
        of = "this one class" if present == 1 else f"these {present} classes"
        note = f"intervals are for {of} alone: groups are of episodes, not of classes."
        return Groups(count, generated, chosen), (note,)
    dealt = torch.from_numpy(deal(class_names))
    generated = dealt[torch.from_numpy(episodes.labels)]
    filled = len(generated.unique())
    note = f"intervals are of {filled} groups of classes; of fewer than {FEW_GROUPS} they say little."
    groups = Groups(int(dealt.max()) + 1, generated, dealt[real.labels], dealt)
    return groups, (note,) if filled < FEW_GROUPS else ()
