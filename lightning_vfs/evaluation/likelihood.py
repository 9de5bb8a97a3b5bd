"""The variational bound of a split's real images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_vfs.data.images import ClassImages, Episodes
from lightning_vfs.evaluation.plan import EvaluationPlan
from lightning_vfs.evaluation.record import Figure, LikelihoodRecord
from lightning_vfs.evaluation.shard import RankShard
from lightning_vfs.metrics.indexed import IndexedRows
from lightning_vfs.metrics.jackknife import Groups


def likelihood_of(
    model: Any,
    conditions: Callable[[np.ndarray], dict[str, Tensor | None]],
    images: ClassImages,
    episodes: Episodes,
    plan: EvaluationPlan,
    groups: Groups,
    shard: RankShard,
    name: str,
) -> tuple[LikelihoodRecord, Figure]:
    """Means over images of the bound's parts, and their sum; of the first targets, conditioned as in generation.

    Args:
        model: its `bits_per_dim` is asked.
        conditions: what the model is conditioned on in some episodes (m,).
        images: the split.
        episodes: their targets are encoded.
        plan: how many, and in how many steps.
        groups: that replicates leave out.
        shard: what this rank does of it. Collective.
        name: of the split, for the progress bar.
    """
    count = min(plan.vlb_images, len(episodes))
    steps = plan.vlb_steps or model.config.diffusion.timesteps
    parts: dict[str, tuple[int, ...]] = {"prior": (), "terms": (steps,), "xstart_mse": (steps,), "eps_mse": (steps,)}
    gathered = IndexedRows(parts).to(shard.device)
    bound = partial(model.bits_per_dim, steps=plan.vlb_steps, seed=plan.seed)
    for batch in shard.batches(count, f"Evaluation: variational bound, {name}"):
        index = torch.from_numpy(batch)
        found = bound(images.float(episodes.targets[batch]), index=index, **conditions(batch))
        gathered.update({part: getattr(found, part) for part in parts}, index)
    rows = {part: values.cpu().double() for part, values in gathered.compute().items()}
    means: dict[str, Any] = {part: values.mean(dim=0).tolist() for part, values in rows.items()}
    record = LikelihoodRecord(
        num_images=count,
        steps=steps,
        prior=means["prior"],
        terms=tuple(means["terms"]),
        xstart_mse=tuple(means["xstart_mse"]),
        eps_mse=tuple(means["eps_mse"]),
    )
    kept = groups.keep[:count, 1:].double()
    replicates = (rows["prior"] + rows["terms"].sum(dim=1)) @ kept / kept.sum(dim=0)
    return record, Figure(record.prior + sum(record.terms)).with_replicates(replicates.tolist())
