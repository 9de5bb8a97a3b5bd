"""What setup.cfg declares, against what the package imports."""

from __future__ import annotations

import ast
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_vfs"
OPTIONAL = {
    "pillow_heif": "heic",
    "huggingface_hub": "hub",
    "gradio": "demo",
    "pyarrow": "hf",
    "tensorstore": "jax-import",
    "msgpack": "jax-import",
    "ml_dtypes": "jax-import",
    "jax": "jax",
    "flax": "jax",
    "orbax": "jax",
    "diffusers": "latent",
}
"""Extras, by the modules that are imported where they are used; every other module is there after `pip install`."""


def imported(file: Path) -> set[str]:
    """Top-level names of all absolute imports of a file, wherever in it they are."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def requirements(text: str) -> dict[str, str]:
    """Normalized names and version ranges of a list in setup.cfg."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    parsed = [re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?(.*)", line) for line in lines]
    return {normalized(match[1]): match[2] for match in parsed if match}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def setup_cfg() -> ConfigParser:
    parser = ConfigParser(comment_prefixes=("#",), inline_comment_prefixes=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_import_is_declared_and_nothing_else_is(setup_cfg: ConfigParser) -> None:
    modules = {module for file in PACKAGE.rglob("*.py") for module in imported(file)}
    modules -= {*sys.stdlib_module_names, "lightning_vfs"}
    distributions = packages_distributions()
    names = {module: {normalized(name) for name in distributions.get(module, [module])} for module in modules}
    for module in modules:
        section, option = (
            ("options.extras_require", OPTIONAL[module]) if module in OPTIONAL else ("options", "install_requires")
        )
        declared = requirements(setup_cfg[section][option])
        assert names[module] & set(declared), f"{module} is imported, but {option} has none of {names[module]}"
    needed = set().union(*names.values())
    # Lightning imports tensorboard, for the logger that the shipped configurations name.
    assert set(requirements(setup_cfg["options"]["install_requires"])) <= needed | {"tensorboard"}
