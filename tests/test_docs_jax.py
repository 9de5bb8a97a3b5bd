"""docs/jax.md: its journeys run, one after the other, and its table is the parameters'."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_vfs.cli import main

from .interop.conftest import trainer_tree
from .processes import run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "jax.md").read_text()
JOURNEYS = dict(re.findall(r"<!-- journey: (.*?) -->\n```bash\n(.*?)```", PAGE, re.S))


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """A run of the JAX system, this repository's configurations, and images of a user."""
    ocp = pytest.importorskip("orbax.checkpoint", reason="install the extra `jax`")
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(image_folder, folder / "path" / "to" / "images")
    (folder / "path" / "to" / "images" / "class00").rename(folder / "path" / "to" / "images" / "cat")
    for image in sorted((folder / "path" / "to" / "images" / "cat").iterdir())[5:]:
        image.unlink()
    (folder / "checkpoints_jax").mkdir()
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    checkpointer.save(folder / "checkpoints_jax" / "ckpt_300000", trainer_tree("head_film", replicas=1))
    config = yaml.safe_load((folder / "configs" / "imported.yaml").read_text())
    (saving,) = (c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("ModelCheckpoint"))
    saving["init_args"]["every_n_train_steps"] = 1
    (folder / "configs" / "imported.yaml").write_text(yaml.safe_dump(config))
    return folder


SMALLER = {
    "fit": [
        "--trainer.max_steps=9", "--trainer.accelerator=cpu", "--data.num_workers=0", "--data.sets_per_epoch=8",
        "--data.eval_sets=2", "--data.batch_size=2", "--data.image_size=8",
    ],
    "sample": ["--num_images=4", "--steps=4"],
    "convert": [],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:1 of 12 classes have fewer than the 6 images")  # the one that is sampled from
def test_the_three_journeys_run_in_order(user_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert list(JOURNEYS) == ["jax to lightning", "lightning to jax", "sampling in jax"]
    monkeypatch.chdir(user_folder)
    for commands in JOURNEYS.values():
        for line in commands.splitlines():
            program, *args = shlex.split(line)
            assert program == "lightning-vfs"
            assert main([*args, *SMALLER[args[0]]]) == 0, f"{line}\n{capsys.readouterr().err}"
    checkpoint = torch.load("runs/imported/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 9
    assert checkpoint["optimizer_states"][0]["state"][0]["step"] == 9
    assert (user_folder / "checkpoints_jax" / "ckpt_400000" / "_METADATA").is_file()


def test_jax_and_torch_draw_the_same_images(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the journeys: the last one's images, from torch."""
    monkeypatch.chdir(user_folder)
    (line,) = (line for line in JOURNEYS["sampling in jax"].splitlines() if " sample " in line)
    args = shlex.split(line.replace("--framework jax", "--framework torch").replace("samples", "torch_samples"))[1:]
    assert main([*args, *SMALLER["sample"]]) == 0
    for i in range(4):
        drawn = [np.asarray(Image.open(user_folder / name / f"{i:04d}.png")) for name in ("samples", "torch_samples")]
        assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1


def test_the_table_of_parameters_is_up_to_date() -> None:
    done = run(ROOT / "scripts" / "jax_parameter_table.py", "--check")
    assert done.returncode == 0, "run: python scripts/jax_parameter_table.py"
