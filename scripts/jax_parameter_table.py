"""Write the table of parameters in docs/jax.md: every one, with its name and shape here and in the JAX system.

Usage: python scripts/jax_parameter_table.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_vfs.core import DenoiserConfig, DiffusionConfig, EncoderConfig, SetConfig, VFSConfig
from lightning_vfs.interop.jax_parameters import jax_shapes, parameter_table
from lightning_vfs.interop.models import shapes_of

PAGE = Path(__file__).parents[1] / "docs" / "jax.md"
BEGIN, END = "<!-- parameters: scripts/jax_parameter_table.py -->\n", "<!-- end of parameters -->\n"

# One layer of each kind, and sizes that differ, so that each number in the table is unique.
SETS = SetConfig(set_size=6, image_size=32, channels=3)
SIZES = {"dim": 256, "depth": 1, "heads": 4, "dim_head": 56, "mlp_ratio": 3.0, "patch_size": 4}
DENOISER = DenoiserConfig(dim=384, depth=1, heads=6, patch_size=2, film="concat", normalize_condition=True)
PLAIN = VFSConfig(SETS, EncoderConfig(**SIZES, time_token="timestep"), DENOISER)
FULL = VFSConfig(
    SETS,
    EncoderConfig(
        **SIZES, time_token="timestep", head_hidden_dim=512, projection_dim=128, projection_hidden_dim=192,
        context="variational",
    ),
    DENOISER,
    DiffusionConfig(),
)  # fmt: skip

WHEN = {
    "encoder.time_embed.": "`time_token: timestep`",
    "encoder.to_time_embedding.": "`time_token: timestep`",
    "encoder.head.fc": "`head_hidden_dim` above 0",
    "encoder.head.": "`head_hidden_dim: 0`",
    "encoder.projection.": "`projection_dim` above 0",
    "posterior.": "`context: variational`",
    "denoiser.blocks.0.context_scale": "`normalize_condition: true`",
}


def rows(config: VFSConfig) -> list[str]:
    """Rows of the table, in the order in which images go through the model."""
    ours = shapes_of(config)
    theirs = jax_shapes(ours, config)
    made = []
    for parameter in parameter_table(config):
        when = next((text for prefix, text in WHEN.items() if parameter.name.startswith(prefix)), "")
        leaves = "<br>".join(f"`{path}`" for path in parameter.paths)
        name, shape = parameter.name.replace(".0.", ".i."), ours[parameter.name]
        leaves = leaves.replace("layer_0", "layer_i").replace("DiTBlock_0", "DiTBlock_i")
        made.append(f"| `{name}` | {shape} | {leaves} | {theirs[parameter.paths[0]]} | {when} |")
    return made


def table() -> str:
    """The whole table, of a model with every option and of one without."""
    full = rows(FULL)
    head = next(i for i, row in enumerate(full) if "encoder.head.fc1" in row)
    plain = [row for row in rows(PLAIN) if "`encoder.head." in row]
    lines = [
        "| here | shape | in the JAX system | shape of a leaf | there with |",
        "| --- | --- | --- | --- | --- |",
        *full[:head],
        *plain,
        *full[head:],
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table, or with --check say whether it is up to date; returns the exit status."""
    text = PAGE.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    updated = f"{text[:start]}\n{table()}\n{text[end:]}"
    if "--check" in sys.argv[1:]:
        return 0 if updated == text else 1
    PAGE.write_text(updated)
    return 0


if __name__ == "__main__":
    sys.exit(main())
