"""The run's one seed."""

from __future__ import annotations

import os


def global_seed() -> int:
    """Seed of the run as Lightning's `seed_everything` keeps it in PL_GLOBAL_SEED; 0 when nobody set one."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
