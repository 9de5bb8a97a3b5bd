"""The command line: help, the contract at its door, resuming, sampling, converting."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, RichModelSummary, RichProgressBar
from PIL import Image

from lightning_vfs import VFSDDPM
from lightning_vfs.callbacks import RunProgressBar, RunSummary
from lightning_vfs.cli import HELP, SUBCOMMANDS, main
from lightning_vfs.commands.lightning import VFSCLI
from lightning_vfs.core import StaleSetSizeWarning
from tests.processes import run


def command(*args: object) -> CompletedProcess[str]:
    """The command in a process of its own."""
    return run("-m", "lightning_vfs", *args)


def test_a_configuration_of_the_users_is_not_written_over(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = "# mine\n" + config_file.read_text()
    (tmp_path / "config.yaml").write_text(mine)
    assert main(["fit", "--config=config.yaml", "--trainer.logger=false"]) == 1
    assert "would overwrite" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == mine
    for _ in range(2):  # that of a run may be written over by the next one
        assert main(["fit", "--config=config.yaml", "--trainer.logger=false", "--trainer.default_root_dir=run"]) == 0
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_a_tilde_is_the_users_folder_wherever_files_go(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["fit", f"--config={config_file}", "--trainer.logger.init_args.save_dir=~/runs"]) == 0
    assert not (tmp_path / "~").exists()
    assert (tmp_path / "home" / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt").is_file()


def test_a_trial_of_one_batch_writes_nothing(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fid = "{class_path: lightning_vfs.FIDCallback, init_args: {num_images: 4, steps: 2, feature_extractor: glyph-cnn}}"
    grid = "{class_path: lightning_vfs.SampleGridCallback, init_args: {num_classes: 1, steps: 2}}"
    (tmp_path / "more.yaml").write_text(f"trainer: {{callbacks+: [{fid}, {grid}]}}")
    with pytest.warns(UserWarning, match="it chooses among 3|glyph-cnn sees"):
        assert main(["fit", f"--config={config_file}", "--config=more.yaml", "--trainer.fast_dev_run=true"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["more.yaml"]


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == HELP
    training = {"fit", "validate", "test", "predict"}
    assert set(SUBCOMMANDS) == training | {
        "evaluate", "data", "sample", "demo", "convert", "push", "extractor", "cache", "compare", "leaderboard",
        "verify",
    }  # fmt: skip
    assert all(f"\n  {name} " in HELP for name in SUBCOMMANDS)


def test_an_unknown_subcommand_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "no subcommand 'train'; use one of fit, validate" in capsys.readouterr().err


# -- the contract, through the CLI in a process of its own ------------------------------------------------------------


@pytest.fixture(scope="module")
def with_fid(config_file: Path) -> list[str]:
    """The tiny configuration, with FID at every validation."""
    callback = """
trainer:
  callbacks+:
    - class_path: lightning_vfs.FIDCallback
      init_args: {num_images: 4, steps: 2, feature_extractor: glyph-cnn, few_shot_way: null}
"""
    config_file.with_name("fid.yaml").write_text(callback)
    return [f"--config={config_file}", f"--config={config_file.with_name('fid.yaml')}"]


def test_1_config_mismatch_detection(trained: Callable[..., Path], with_fid: list[str]) -> None:
    """The failure report's test 1: trained on sets of 6, a configuration left at 5: one warning, FID runs."""
    flags = [f"--ckpt_path={trained()}", "--model.config.sets.set_size=5", "--trainer.max_steps=4"]
    done = command("fit", *with_fid, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("says sets of 5, but the weights were made for sets of 6 (72 = 2²·6·3)") == 1
    assert re.search(r"4 generated images a split, averaged weights of step \d: fid\[glyph-cnn\]/in", done.stderr)


def test_2_no_mismatch(trained: Callable[..., Path], with_fid: list[str]) -> None:
    """The failure report's test 2: everything at 6: FID runs without a warning."""
    done = command("validate", *with_fid, f"--ckpt_path={trained()}")
    assert done.returncode == 0, done.stderr
    assert "sets of" not in done.stderr
    assert re.search(r"4 generated images a split, averaged weights of step \d: fid\[glyph-cnn\]/in", done.stderr)


def test_3_data_of_another_size(trained: Callable[..., Path], with_fid: list[str]) -> None:
    """The case that the failure report forgot: refused with both numbers, the formula and the ways out."""
    done = command("fit", *with_fid, f"--ckpt_path={trained()}", "--data.set_size=5")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("SetSizeMismatchError: The weights were made for sets of 6 (72 = 2²·6·3)")
    assert "the data has sets of 5 (60 = 2²·5·3)" in last
    assert "--data.set_size 6" in last and "--model.on_set_size_mismatch adapt" in last
    assert "Traceback" not in done.stderr


# -- the same door, in this process -----------------------------------------------------------------------------------


def test_weights_that_fit_no_set(trained, config_file: Path, tmp_path: Path, capsys) -> None:
    contents = torch.load(trained(), weights_only=True)
    for name in ("norm.weight", "norm.bias", "proj.weight"):
        key = f"encoder.to_patch_embedding.{name}"
        contents["state_dict"][key] = contents["state_dict"][key][..., :70]
    torch.save(contents, tmp_path / "damaged.ckpt")
    assert main(["validate", f"--config={config_file}", f"--ckpt_path={tmp_path / 'damaged.ckpt'}"]) == 1
    assert "CheckpointError: The weights have a patch_dim of 70" in capsys.readouterr().err


def test_adapting_goes_on_and_the_next_checkpoint_tells_the_truth(trained, config_file: Path) -> None:
    flags = ["--data.set_size=4", "--model.on_set_size_mismatch=adapt", "--trainer.max_steps=4"]
    adapted = trained(f"--ckpt_path={trained()}", *flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleSetSizeWarning)
        assert VFSDDPM.load_from_checkpoint(adapted).config.sets.set_size == 6


def test_model_and_data_that_contradict_each_other_are_refused(config_file: Path, capsys) -> None:
    assert main(["fit", f"--config={config_file}", "--model.config.sets.set_size=5"]) == 1
    assert "--model.config.sets.set_size is 5, but --data.set_size is 6: give it once" in capsys.readouterr().err


def test_the_data_decides_for_a_fresh_model(trained) -> None:
    assert VFSDDPM.load_from_checkpoint(trained("--data.set_size=4")).config.patch_dim == 48


def test_images_need_to_fit_the_patches_given_and_no_others(trained) -> None:
    flags = ["--data.image_size=10", "--model.config.encoder.patch_size=2", "--model.config.denoiser.patch_size=5"]
    assert VFSDDPM.load_from_checkpoint(trained(*flags)).config.sets.image_size == 10


def test_a_flag_that_contradicts_the_weights_is_named(trained, config_file: Path, capsys) -> None:
    assert main(["fit", f"--config={config_file}", f"--ckpt_path={trained()}", "--model.config.encoder.dim=32"]) == 1
    assert "--model.config.encoder.dim is 32, but the checkpoint was trained with 16" in capsys.readouterr().err
    assert main(["fit", f"--config={config_file}", f"--ckpt_path={trained()}", "--data.channels=1"]) == 1
    assert "trained with channels 3, but the data has 1: set --data.channels 3" in capsys.readouterr().err


def test_a_list_that_is_the_checkpoints_contradicts_nothing(trained, config_file: Path, capsys) -> None:
    fit = ["validate", f"--config={config_file}", f"--ckpt_path={trained()}"]
    assert main([*fit, "--model.config.denoiser.channel_mult=[1, 2, 2]"]) == 0
    assert main([*fit, "--model.config.denoiser.channel_mult=[1, 2]"]) == 1
    assert "channel_mult is [1, 2], but the checkpoint was trained with [1, 2, 2]" in capsys.readouterr().err


def test_an_older_checkpoint_was_trained_with_the_defaults_of_what_came_later(
    trained, config_file: Path, tmp_path: Path, capsys
) -> None:
    contents = torch.load(trained(), weights_only=True)
    config = contents["hyper_parameters"]["config"]
    del config["denoiser"]["conditioning"], config["encoder"]["architecture"], config["latent"]
    torch.save(contents, tmp_path / "old.ckpt")
    validate = ["validate", f"--config={config_file}", f"--ckpt_path={tmp_path / 'old.ckpt'}"]
    assert main([*validate, "--model.config.denoiser.conditioning=film"]) == 0
    for flag, value, default in (("denoiser.conditioning", "lag", "film"), ("encoder.architecture", "vit", "set_vit")):
        assert main([*validate, f"--model.config.{flag}={value}"]) == 1
        said = f"--model.config.{flag} is {value!r}, but the checkpoint was trained with {default!r}"
        assert said in capsys.readouterr().err


def test_other_flags_beside_a_checkpoint_are_obeyed(trained, config_file: Path) -> None:
    flags = ["--model.optimizer.learning_rate=0.5", "--model.config.encoder.dropout=0.25", "--trainer.max_steps=4"]
    resumed = torch.load(trained(f"--ckpt_path={trained()}", *flags), weights_only=True)
    assert resumed["global_step"] == 4
    assert resumed["hyper_parameters"]["optimizer"]["learning_rate"] == 0.5
    assert resumed["hyper_parameters"]["config"]["encoder"]["dropout"] == 0.25
    # What the optimizer steps with: the last of 4 steps of a warm-up over 100.
    assert [group["initial_lr"] for group in resumed["optimizer_states"][0]["param_groups"]] == [0.5, 0.5]
    assert resumed["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.5 * 5 / 100)


def test_a_missing_checkpoint_names_those_that_are_there(trained, config_file: Path, capsys) -> None:
    missing = trained().with_name("lost.ckpt")
    assert main(["fit", f"--config={config_file}", f"--ckpt_path={missing}"]) == 1
    assert "there are last.ckpt in that folder" in capsys.readouterr().err


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_every_subcommand_asks_the_contract(trained, config_file: Path, capsys, subcommand: str) -> None:
    assert main([subcommand, f"--config={config_file}", f"--ckpt_path={trained()}", "--data.set_size=4"]) == 1
    assert "SetSizeMismatchError: The weights were made for sets of 6" in capsys.readouterr().err


def test_files_that_are_no_checkpoint(trained, config_file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "cut.ckpt").write_bytes(trained().read_bytes()[:9000])
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.ckpt")
    torch.save({"state_dict": {"conv.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    for name, says in (
        ("cut", "(9,000 bytes) is truncated or not a checkpoint"),
        ("bare", "has no `state_dict`"),
        ("other", "is a checkpoint of another model (it has conv.weight"),
    ):
        assert main(["fit", f"--config={config_file}", f"--ckpt_path={tmp_path / name}.ckpt"]) == 1
        assert f"CheckpointError: {tmp_path / name}.ckpt " in (said := capsys.readouterr().err)
        assert says in said


# -- evaluation, prediction -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_a_checkpoint_runs_in_every_stage(trained, config_file: Path, subcommand: str) -> None:
    assert main([subcommand, f"--config={config_file}", f"--ckpt_path={trained()}"]) == 0


def test_predict_writes_a_picture_of_every_test_set(trained, config_file: Path, tmp_path: Path) -> None:
    flags = [f"--ckpt_path={trained()}", f"--trainer.logger.init_args.save_dir={tmp_path}", "--data.eval_sets=3"]
    assert main(["predict", f"--config={config_file}", *flags]) == 0
    pictures = tmp_path / "tiny" / "version_0" / "predictions"
    assert sorted(p.name for p in pictures.glob("*.png")) == ["000000.png", "000001.png", "000002.png"]
    with Image.open(pictures / "000000.png") as picture:
        assert picture.width > 6 * 48


# -- progress bar and summary -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "bars", "summaries"),
    [
        (["--trainer.enable_progress_bar=true", "--trainer.enable_model_summary=true"], [RunProgressBar], [RunSummary]),
        (
            [
                "--trainer.enable_progress_bar=null", "--trainer.callbacks+=RichProgressBar",
                "--trainer.callbacks+=RichModelSummary",
            ],
            [RichProgressBar],
            [RichModelSummary],
        ),
        ([], [], []),
    ],
    ids=["by default", "the user's own", "none"],
)  # fmt: skip
def test_a_run_has_a_bar_and_a_summary(trained, config_file: Path, flags: list[str], bars, summaries) -> None:
    cli = VFSCLI(["validate", f"--config={config_file}", f"--ckpt_path={trained()}", *flags])
    callbacks = cli.trainer.callbacks
    assert [type(callback) for callback in callbacks if isinstance(callback, ProgressBar)] == bars
    assert [type(callback) for callback in callbacks if isinstance(callback, ModelSummary)] == summaries


# -- options of the trainer that do not go together -------------------------------------------------------------------


def test_without_a_logger_there_is_no_monitor_of_the_learning_rate(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--trainer.logger=false", "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    assert main(["fit", f"--config={config_file}", *flags, "--trainer.max_steps=1"]) == 0
    assert "LearningRateMonitor is left out: with --trainer.logger false it has nowhere to write." in caplog.text
    assert (tmp_path / "checkpoints/last.ckpt").is_file()


STRATEGY = "--trainer.strategy"


@pytest.mark.parametrize("sizes", [(3, 1), ("auto", 3)])
def test_a_mesh_of_another_size_than_the_run_is_refused(config_file: Path, capsys, sizes: tuple) -> None:
    names = ("data_parallel_size", "tensor_parallel_size")
    flags = [f"{STRATEGY}.init_args.{name}={size}" for name, size in zip(names, sizes, strict=True)]
    strategy = f"{STRATEGY}=lightning.pytorch.strategies.ModelParallelStrategy"
    assert main(["fit", f"--config={config_file}", strategy, *flags, "--trainer.devices=2"]) == 1
    said = capsys.readouterr().err
    assert "3" in said and "but the run has 2 processes (--trainer.devices 2, --trainer.num_nodes 1)" in said
    assert f"set {STRATEGY}.init_args.data_parallel_size 2" in said


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_what_all_processes_of_a_machine_meet_is_said_once(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str
) -> None:
    """What one of them may meet alone is said by each."""
    fit = ["fit", f"--config={config_file}"]
    for rank, times in (("0", 1), ("1", 0)):
        monkeypatch.setenv(name, rank)
        assert main([*fit, f"--ckpt_path={tmp_path / 'missing.ckpt'}"]) == 1
        assert capsys.readouterr().err.count("CheckpointError: There is no checkpoint") == times
        assert main([*fit, f"--data.root={tmp_path / 'missing'}"]) == 1
        assert capsys.readouterr().err.count("DataError: ") == 1
