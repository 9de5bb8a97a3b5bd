"""Runs drawn over ways to end, precision, accumulation, validation interval and workers: resumed, all are equal."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.callbacks.endings import STEPS, WAYS, Run, cut, differences, train

DRAWN = {
    "run": st.builds(
        Run,
        precision=st.sampled_from(["32-true", "bf16-mixed", "bf16-true", "64-true"]),
        accumulate=st.sampled_from([1, 2, 3]),
        val_every=st.sampled_from([None, 2, 3]),
        every=st.sampled_from([1, 3, 100]),
        workers=st.sampled_from([0, 0, 0, 1]),
        sampling=st.sampled_from(["uniform", "loss_second_moment"]),
    ),
    "way": st.sampled_from(WAYS),
    "at": st.integers(0, STEPS - 2),
}


def soak(examples: int) -> Counter[str]:
    """How many of the drawn runs ended in which way; a resumed run that differs is an error."""
    counts: Counter[str] = Counter()
    straight: dict[Run, Path] = {}

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(**DRAWN)
    def check(run: Run, way: str, at: int) -> None:
        folder = Path(tempfile.mkdtemp(dir=root))
        if run not in straight:
            straight[run] = folder / "straight/last.ckpt"
            train(folder / "straight", run)
        cut(folder / "cut", run, way, at)
        last = folder / "cut/last.ckpt"
        # Without a whole step there is nothing to resume, and the run begins afresh.
        train(folder / "resumed", run, resume=last if last.exists() else None)
        counts[f"{way}, {'resumed' if last.exists() else 'nothing to resume'}"] += 1
        ended_at_last = last.exists() and torch.load(last, weights_only=True)["global_step"] == STEPS
        resumed = last if ended_at_last else folder / "resumed/last.ckpt"
        assert differences(straight[run], resumed) == []
        shutil.rmtree(folder / "cut", ignore_errors=True)

    root = tempfile.mkdtemp()
    try:
        check()
    finally:
        shutil.rmtree(root)
    return counts


def test_20_drawn_runs() -> None:
    assert sum(soak(20).values()) == 20


@pytest.mark.slow
def test_200_drawn_runs() -> None:
    counts = soak(200)
    print("\n".join(f"{count:4} {way}" for way, count in sorted(counts.items())))
    assert sum(counts.values()) == 200
