"""What is imported: the core imports no framework. That nothing imports upwards, `make lint` checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_vfs

PACKAGE = Path(lightning_vfs.__file__).parent


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_core_names_no_framework() -> None:
    for file in (PACKAGE / "core").rglob("*.py"):
        assert not imported(file) & {"torch", "jax", "lightning", "flax"}, file.name


def loaded_by(statement: str) -> set[str]:
    heavy = "('torch', 'jax', 'lightning', 'torchvision', 'matplotlib')"
    code = f"import sys; {statement}; print(*[m for m in {heavy} if m in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


LIGHT = [
    "import lightning_vfs", "import lightning_vfs.core", "import lightning_vfs.cli",
    "from lightning_vfs.evaluation import EvaluationRecord, compare",
]  # fmt: skip


@pytest.mark.parametrize("statement", LIGHT)
def test_light_imports_stay_light(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_every_public_name_can_be_imported() -> None:
    for name in lightning_vfs.__all__:
        assert name.startswith("__") or getattr(lightning_vfs, name).__name__ == name
