"""The shipped configurations: each makes a model at its full size, and the newer ones train a tiny one on tiny data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.cli import main
from lightning_vfs.commands.lightning import LINKED
from tests.modules.autoencoder import SCALE, save_autoencoder

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = {str(path.relative_to(CONFIGS)): yaml.safe_load(path.read_text()) for path in CONFIGS.rglob("*.yaml")}
WITH_MODEL = sorted(name for name, values in ALL.items() if "config" in values.get("model", {}))
TINY_DENOISER = ["--model.config.denoiser.dim=12", "--model.config.denoiser.depth=1", "--model.config.denoiser.heads=3"]
TINY: dict[str, list[str]] = {
    "baselines/unconditional.yaml": TINY_DENOISER,
    "baselines/class_conditional.yaml": [*TINY_DENOISER, "--model.config.encoder.dim=8"],
    "unet.yaml": [
        "--data.image_size=16", "--model.config.encoder.depth=1", "--model.config.encoder.dim=16",
        "--model.config.encoder.heads=2", "--model.config.encoder.dim_head=8",
        "--model.config.denoiser.channels=8", "--model.config.denoiser.channel_mult=[1,2]",
        "--model.config.denoiser.num_res_blocks=1",
    ],
    "latent.yaml": [
        *TINY_DENOISER, "--model.config.encoder.depth=1", "--model.config.encoder.dim=16",
        "--model.config.encoder.patch_size=4", "--model.config.latent.downsampling=2",
        f"--model.config.latent.scale={SCALE}",
    ],
}  # fmt: skip


def tiny(name: str, folder: Path) -> Path:
    """The configuration with callbacks that all act within an epoch of one step, and logs in the folder."""
    values = ALL[name]
    for callback in values["trainer"]["callbacks"]:
        options = callback.get("init_args", {})
        if callback["class_path"].endswith("SampleGridCallback"):
            options |= {"every_n_epochs": 1, "num_images": 2, "steps": 2}
        if callback["class_path"].endswith("ModelCheckpoint"):
            options["every_n_train_steps"] = 1
    values["trainer"]["logger"]["init_args"]["save_dir"] = str(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder / "tiny.yaml"


@pytest.mark.parametrize("name", WITH_MODEL)
def test_the_model_is_possible_and_its_file_says_how_to_run_it(name: str) -> None:
    assert f"\n#   lightning-vfs fit --config configs/{name}" in (CONFIGS / name).read_text()
    model, data = ALL[name]["model"]["config"], ALL[name]["data"]["init_args"]
    VFSConfig.from_dict({**model, "sets": model.get("sets", {}) | {field: data[field] for field in LINKED}})


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_trains_and_shows_what_it_makes(name: str, image_folder: Path, tmp_path: Path) -> None:
    assert name in WITH_MODEL
    flags = [
        "--trainer.max_steps=1", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--data.num_workers=0",
        "--data.sets_per_epoch=2", "--data.eval_sets=2", "--data.batch_size=2", "--data.image_size=8",
        "--model.config.diffusion.timesteps=50", *TINY[name],
    ]  # fmt: skip
    if "FolderSets" in ALL[name]["data"]["class_path"]:
        flags.append(f"--data.root={image_folder}")
    if name == "latent.yaml":
        save_autoencoder(tmp_path / "vae")
        flags.append(f"--model.config.latent.autoencoder={tmp_path / 'vae'}")
    assert main(["fit", f"--config={tiny(name, tmp_path)}", *flags]) == 0
    run = tmp_path / Path(name).stem / "version_0"
    assert (run / "samples" / "step=00000001.png").is_file()
    trained = VFSDDPM.load_from_checkpoint(run / "checkpoints" / "last.ckpt").config
    shipped = ALL[name]["model"]["config"]
    for part in ("encoder", "denoiser"):
        default = getattr(VFSConfig(), part).architecture
        assert getattr(trained, part).architecture == shipped[part].get("architecture", default)
