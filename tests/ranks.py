"""Processes that train or evaluate together."""

from __future__ import annotations

import socket
from pathlib import Path
from subprocess import CompletedProcess

from tests.processes import run_together


def run_ranks(script: Path, ranks: int, folder: Path, **environment: str) -> None:
    """Run `python <script> <rank> <port> <folder>` for every rank at once; all of them end well."""
    for done in ended_ranks(script, ranks, folder, **environment):
        assert done.returncode == 0, done.stdout + done.stderr


def ended_ranks(script: Path, ranks: int, folder: Path, **environment: str) -> list[CompletedProcess[str]]:
    """How they end."""
    environments = meeting(ranks)
    return run_together(
        [[script, rank, environments[rank]["MASTER_PORT"], folder] for rank in range(ranks)],
        [found | environment for found in environments],
    )


def meeting(ranks: int) -> list[dict[str, str]]:
    """Environments by which Lightning takes processes for ranks of one run, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    return [found | {"LOCAL_RANK": str(rank)} for rank in range(ranks)]
