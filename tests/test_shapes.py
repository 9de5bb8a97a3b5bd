"""Shapes that signatures state are those of real calls: checked by jaxtyping and beartype in a process of its own."""

from __future__ import annotations

from pathlib import Path

from tests.processes import run

SCRIPT = """
import sys

# It is to be imported under the hook.
for name in [name for name in sys.modules if name.startswith("lightning_vfs")]:
    del sys.modules[name]

from jaxtyping import TypeCheckError, install_import_hook

CORE = "categorical diffusion embeddings gaussian guidance likelihood patches samplers sets"
# All but dropout, whose operator torch derives from the bare types of its function.
MODULES = "attention context dit few_shot_diffusion generation latent layers noise set_encoder spt unet unet_blocks"
with install_import_hook(
    [f"lightning_vfs.core.{name}" for name in CORE.split()]
    + [f"lightning_vfs.modules.{name}" for name in MODULES.split()],
    "beartype.beartype",
):
    import lightning_vfs.core.sets, lightning_vfs.modules

import numpy as np, torch
from tests.modules.family import cases

count = 0
for case in cases():
    if case.row["latent"] != "pixels":
        continue
    model = case.model(None).train()
    model.batch_loss(case.batch)
    model.eval()
    model.generate(index=torch.arange(2), steps=2, **case.condition())
    if count % 4 == 0:
        images = case.batch["images"][:2, 0]
        model.bits_per_dim(images, index=torch.arange(len(images)), steps=2, **case.condition())
    count += 1
assert count >= 8, count

sets = lightning_vfs.core.sets
try:
    sets.set_mean(np.zeros((2, 3, 4)), np.zeros(3, dtype=np.int64))
except TypeCheckError:
    print("checked")
"""


def test_signatures_state_the_shapes_of_real_calls(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    result = run(tmp_path / "script.py")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "checked\n"
