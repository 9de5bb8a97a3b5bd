"""What imports what: the core imports no framework, and nothing imports upwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_vfs

PACKAGE = Path(lightning_vfs.__file__).parent
ALLOWED = {
    "core": {"core"},
    "data": {"core", "data"},
    "metrics": {"core", "metrics", "data"},
    "interop": {"core", "interop", "modules"},
    "modules": {"core", "modules", "interop"},
    "flax": {"core", "flax", "interop", "modules"},
    "callbacks": {"core", "modules", "data", "metrics", "callbacks"},
}


def imported(file: Path) -> set[str]:
    """Top-level packages, and parts of ours as `lightning_vfs.<part>`, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {".".join(name.split(".")[:2]) if name.startswith("lightning_vfs") else name.split(".")[0] for name in names}


@pytest.mark.parametrize("part", ALLOWED)
def test_parts_import_only_what_lies_below(part: str) -> None:
    for file in (PACKAGE / part).rglob("*.py"):
        ours = {name.removeprefix("lightning_vfs.") for name in imported(file) if name.startswith("lightning_vfs.")}
        assert ours <= ALLOWED[part], f"{file.relative_to(PACKAGE)} imports {ours - ALLOWED[part]}"


def test_core_names_no_framework() -> None:
    for file in (PACKAGE / "core").rglob("*.py"):
        assert not imported(file) & {"torch", "jax", "lightning", "flax"}, file.name


def loaded_by(statement: str) -> set[str]:
    heavy = "('torch', 'jax', 'lightning', 'torchvision', 'matplotlib')"
    code = f"import sys; {statement}; print(*[m for m in {heavy} if m in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("statement", ["import lightning_vfs", "import lightning_vfs.core", "import lightning_vfs.cli"])
def test_light_imports_stay_light(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_every_public_name_can_be_imported() -> None:
    for name in lightning_vfs.__all__:
        assert getattr(lightning_vfs, name).__name__ == name
