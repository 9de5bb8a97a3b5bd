"""The shipped configurations: each makes a model at its full size, and the newer ones train a tiny one on tiny data."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.plugins.environments import SLURMEnvironment

from lightning_vfs import VFSDDPM, VFSConfig
from lightning_vfs.cli import main
from lightning_vfs.commands.lightning import VFSCLI
from tests.data.official import cifar100, write_tar
from tests.modules.autoencoder import SCALE, save_autoencoder

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = {str(path.relative_to(CONFIGS)): yaml.safe_load(path.read_text()) for path in CONFIGS.rglob("*.yaml")}
WITH_MODEL = sorted(name for name, values in ALL.items() if "config" in values.get("model", {}))
TINY_DENOISER = ["--model.config.denoiser.dim=12", "--model.config.denoiser.depth=1", "--model.config.denoiser.heads=3"]
TINY: dict[str, list[str]] = {
    "baselines/unconditional.yaml": TINY_DENOISER,
    "baselines/class_conditional.yaml": [*TINY_DENOISER, "--model.config.encoder.dim=8"],
    "cpu.yaml": [*TINY_DENOISER, "--data.image_size=16", "--model.config.encoder.dim=8"],
    "unet.yaml": [
        "--data.image_size=16", "--model.config.encoder.depth=1", "--model.config.encoder.dim=16",
        "--model.config.encoder.heads=2", "--model.config.encoder.dim_head=8",
        "--model.config.denoiser.channels=8", "--model.config.denoiser.channel_mult=[1,2]",
        "--model.config.denoiser.num_res_blocks=1",
    ],
    "data/cifar100.yaml": [
        *TINY_DENOISER, "--model.config.encoder.depth=1", "--model.config.encoder.dim=16",
        "--model.config.encoder.patch_size=4", "--data.set_size=2",
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
    for logger in values["trainer"]["logger"]:
        logger["init_args"]["save_dir"] = str(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    return folder / "tiny.yaml"


@pytest.mark.parametrize("name", WITH_MODEL)
def test_the_model_is_possible_and_its_file_says_how_to_run_it(name: str) -> None:
    assert f"\n#   lightning-vfs fit --config configs/{name}" in (CONFIGS / name).read_text()
    model, data = ALL[name]["model"]["config"], ALL[name]["data"]["init_args"]
    VFSConfig.for_data(model, data)


@pytest.mark.filterwarnings("ignore:val/loss is left out")
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
    elif "CIFAR100Sets" in ALL[name]["data"]["class_path"]:
        write_tar(tmp_path / "cifar-100-python.tar.gz", cifar100(1, 1))
        flags.append(f"--data.root={tmp_path}")
    else:
        flags.append("--data.image_size=16")  # of the glyphs that are rendered already
    if name == "latent.yaml":
        save_autoencoder(tmp_path / "vae")
        flags.append(f"--model.config.latent.autoencoder={tmp_path / 'vae'}")
    assert main(["fit", f"--config={tiny(name, tmp_path)}", *flags]) == 0
    run = tmp_path / Path(name).stem / "version_0"
    assert (run / "samples" / "step=00000001.png").is_file()
    assert list(run.glob("events.out.tfevents.*"))  # TensorBoard, in the same folder
    assert not run.with_name("version_1").exists()
    trained = VFSDDPM.load_from_checkpoint(run / "checkpoints" / "last.ckpt").config
    shipped = ALL[name]["model"]["config"]
    for part in ("encoder", "denoiser"):
        default = getattr(VFSConfig(), part).architecture
        assert getattr(trained, part).architecture == shipped[part].get("architecture", default)


# -- many GPUs --------------------------------------------------------------------------------------------------------

SCALE = CONFIGS / "scale"


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parses the arguments of the command as it would, where `configs` are and no runs; gives the configuration."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    for step in ("instantiate_classes", "after_instantiate_classes", "_run_subcommand"):
        monkeypatch.setattr(VFSCLI, step, lambda cli, *args: None)

    def config(arguments: list[str]) -> Namespace:
        return VFSCLI(arguments).config[arguments[0]]

    return config


def example(file: Path, command: str) -> list[str]:
    """Arguments of the command in the comment on top of a file."""
    found = re.search(rf"^#   (?:\S+=\S+ )*{command} (.*)$", file.read_text(), re.MULTILINE)
    assert found is not None, file
    return shlex.split(found[1])


def command_of(script: Path, launcher: str, arguments: list[str], **env: str) -> list[str]:
    """What a script starts by the launcher."""
    stub = Path("bin", launcher)
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    stub.chmod(0o755)
    subprocess.run(["bash", "-n", script], check=True)
    env = os.environ | {"PATH": f"{stub.parent.resolve()}:{os.environ['PATH']}"} | env
    run = subprocess.run(["bash", script, *arguments], env=env, check=True, capture_output=True, text=True)
    return run.stdout.split("\0")[:-1]


@pytest.mark.parametrize("name", sorted(path.name for path in SCALE.glob("*.yaml")))
def test_a_configuration_for_many_gpus_goes_beside_a_models(parse, name: str) -> None:
    arguments = example(SCALE / name, "lightning-vfs")
    model, scale = (arguments[i + 1] for i, argument in enumerate(arguments) if argument == "--config")
    assert scale == f"configs/scale/{name}"
    config = parse(arguments)
    trainer, trained = config["trainer"], yaml.safe_load(Path(model).read_text())
    assert (trainer["accelerator"], trainer["precision"]) == ("gpu", "bf16-mixed")
    assert trainer["max_steps"] == trained["trainer"]["max_steps"]
    assert config["data"]["init_args"]["batch_size"] == trained["data"]["init_args"]["batch_size"]
    if name == "one_node.yaml":
        assert (trainer["strategy"], trainer["devices"]) == ("ddp", "auto")
    else:
        strategy = trainer["strategy"]
        assert strategy["class_path"].endswith("ModelParallelStrategy") and config["model"]["checkpoint_activations"]
        assert strategy["init_args"]["data_parallel_size"] == trainer["devices"] * trainer["num_nodes"]
        assert strategy["init_args"]["tensor_parallel_size"] == 1
        assert strategy["init_args"]["save_distributed_checkpoint"] is False


def test_torchrun_starts_what_the_trainer_expects(parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)  # as a run with several ranks leaves it
    script = SCALE / "torchrun.sh"
    arguments = example(script, "configs/scale/torchrun.sh")
    started = command_of(script, "torchrun", arguments, NODES="2", MASTER_ADDR="node0", DEVICES="4")
    options, command = started[: started.index("-m")], started[started.index("-m") :]
    assert command[:2] == ["-m", "lightning_vfs"] and command[-len(arguments) :] == arguments
    options = dict(zip(options[::2], options[1::2], strict=True))
    assert options["--rdzv-endpoint"] == "node0:29500"
    config = parse(command[2:])
    assert config["trainer"]["num_nodes"] == int(options["--nnodes"]) == 2
    assert config["trainer"]["devices"] == options["--nproc-per-node"] == "4"
    assert config["trainer"]["strategy"] == "ddp"
    assert config["ckpt_path"] is None  # last_if_any, and there is none


def test_slurm_starts_what_the_trainer_expects(parse) -> None:
    script = SCALE / "slurm.sbatch"
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", script.read_text(), re.MULTILINE))
    given = {
        "SLURM_NNODES": "nodes",
        "SLURM_NTASKS_PER_NODE": "ntasks-per-node",
        "SLURM_CPUS_PER_TASK": "cpus-per-task",
    }
    arguments = example(script, "sbatch configs/scale/slurm.sbatch")
    started = command_of(script, "srun", arguments, **{name: asked[option] for name, option in given.items()})
    command = started[started.index("lightning-vfs") + 1 :]
    assert command[-len(arguments) :] == arguments
    trainer = parse(command)["trainer"]
    assert trainer["num_nodes"] == int(asked["nodes"])
    assert trainer["devices"] == asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert trainer["strategy"] == "ddp"
    # Without a letter before the signal it goes to the tasks, and not to the script.
    signal, seconds = asked["signal"].split("@")
    assert signal == SLURMEnvironment().requeue_signal.name and int(seconds) >= 120
    assert "requeue" in asked and asked["open-mode"] == "append" and asked["job-name"] not in ("bash", "interactive")


@pytest.mark.slow
def test_torchrun_trains_and_the_same_command_goes_on(config_file: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env |= {"DEVICES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = [f"--config={config_file}", f"--trainer.logger.init_args.save_dir={tmp_path}"]
    cpu = ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    for version, (steps, says) in enumerate([(2, "a new run starts"), (4, "version_0/checkpoints/last.ckpt")]):
        script = [SCALE / "torchrun.sh", *arguments, *cpu, f"--trainer.max_steps={steps}"]
        run = subprocess.run(script, env=env, cwd=CONFIGS.parent, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr
        assert says in run.stderr
        last = tmp_path / f"tiny/version_{version}/checkpoints/last.ckpt"
        assert torch.load(last, weights_only=True)["global_step"] == steps
