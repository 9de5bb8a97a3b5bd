"""lightning-vfs evaluate: all figures of a checkpoint, without a training configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vfs.callbacks import FIDCallback, RunProgressBar, RunSummary
from lightning_vfs.commands.closing import next_command
from lightning_vfs.commands.configurations import configuration_of
from lightning_vfs.commands.last_run import spell_out_last
from lightning_vfs.commands.lightning import find_last
from lightning_vfs.commands.machine import instantiation, trainer_options
from lightning_vfs.commands.models import check_one_model, load_model, spell_out_raw
from lightning_vfs.commands.results import print_results
from lightning_vfs.commands.trust import HELP as TRUST_HELP
from lightning_vfs.commands.trust import check_class_paths, import_trusted
from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core.errors import ConfigError
from lightning_vfs.core.fingerprint import KEY as FINGERPRINT
from lightning_vfs.core.trust import check_plain
from lightning_vfs.data import SetDataModule
from lightning_vfs.data.catalog import DATA_SETS  # noqa: F401 - the parser finds subclasses
from lightning_vfs.evaluation.record import FILE_NAME
from lightning_vfs.training.checkpoints import read_checkpoint

MOST_YAML = 2**20
"""Bytes of the configuration of a run."""

DESCRIPTION = """Evaluate a checkpoint on classes trained on and on classes never trained on, as FIDCallback does.

The data is that of the run, from the config.yaml of its checkpoints, unless --data names another. Writes fid.json
next to the checkpoint. configs/eval/ has protocols: --config configs/eval/fsdm.yaml."""


def _parser() -> ExplainingParser:
    parser = ExplainingParser(prog="lightning-vfs evaluate", description=DESCRIPTION)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options, such as a protocol")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="a Lightning checkpoint; or --pretrained")
    parser.add_argument(
        "--pretrained", type=str | None, default=None, help="glyphs, a folder of `convert`, or a hub id"
    )
    parser.add_argument("--autoencoder", type=str | None, default=None, help="its folder, for a model of latents")
    parser.add_argument("--trust", type=str | None, default=None, help=TRUST_HELP)
    parser.add_argument("--raw", type=bool, default=False, help="the raw weights instead of the averaged ones")
    parser.add_subclass_arguments(SetDataModule, "data", required=False, help="data set; by default the run's own")
    parser.add_class_arguments(FIDCallback, "fid", skip={"every_n_epochs", "every_n_steps"})
    for name, default in (("accelerator", "auto"), ("strategy", "auto"), ("precision", "32-true")):
        parser.add_argument(f"--{name}", type=str, default=default, help="as in Lightning's Trainer")
    parser.add_argument("--devices", type=int | str, default=1, help="as in Lightning's Trainer")
    return parser


def evaluate(options: Namespace, data: SetDataModule, callback: FIDCallback) -> pl.Trainer:
    """Evaluate as the options say; returns the trainer, whose `callback_metrics` are the figures.

    Raises:
        CheckpointError: the file does not hold a lightning_vfs model.
        SetSizeMismatchError: the data has sets of another size than the weights.
        EvaluationError: too few images or classes, or no weights for the extractor.
    """
    model = load_model(options.ckpt_path, options.pretrained, options.autoencoder, options.raw)
    if options.pretrained and callback.record is None and Path(options.pretrained).is_dir():
        callback.record = Path(options.pretrained) / FILE_NAME
    with trainer_options("--"):
        trainer = pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            precision=options.precision,
            callbacks=[callback, RunProgressBar(), RunSummary()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    trainer.test(model, datamodule=data, ckpt_path=options.ckpt_path, verbose=False)
    return trainer


def data_of_run(ckpt_path: str | None, trusted: Sequence[str]) -> dict[str, Any]:
    """The data's part of the config.yaml that the command line wrote for a run, without its `cache_dir`.

    A folder to write to is the user's choice, not that of a file.

    Raises:
        ConfigError: there is none, or it has no such part.
        UntrustedCodeError: it names a class outside of this package and of the modules that the user trusts.
    """
    known = "--data GlyphSets, or --data FolderSets --data.root FOLDER"
    if ckpt_path is None:
        raise ConfigError(f"A pretrained folder does not say what data to evaluate on: give {known}.")
    folder = Path(ckpt_path).resolve().parent.parent
    config = configuration_of(folder, read_checkpoint(ckpt_path).get(FINGERPRINT, {}))
    if not config.is_file():
        raise ConfigError(f"There is no configuration of the run ({config}) to take the data from: give {known}.")
    try:
        if config.stat().st_size > MOST_YAML:
            raise ValueError(f"it has {config.stat().st_size:,} bytes, and a run's configuration at most {MOST_YAML:,}")
        data = yaml.safe_load(config.read_text())["data"]
        check_plain(data, most=10_000)
        found: dict[str, Any] = {"class_path": data} if isinstance(data, str) else dict(data)
        arguments = {name: value for name, value in dict(found.get("init_args") or {}).items() if name != "cache_dir"}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{config} is not the configuration of a run ({reason}): give {known}.") from error
    if unknown := set(found) - {"class_path", "init_args"}:
        raise ConfigError(
            f"{config} has {', '.join(map(str, unknown))} for the data, which no run writes: give {known}."
        )
    found["init_args"] = arguments
    check_class_paths(config, found, trusted)
    return found


def run(args: list[str]) -> None:
    """Parse the arguments and evaluate.

    Raises:
        ConfigError: no model, two of them, or no data.
        UntrustedCodeError: the checkpoint or the run's configuration names code that the user has not named.
    """
    parser = _parser()
    args = spell_out_raw(spell_out_last(args, find_last))
    options = parser.parse_args(args)
    check_one_model(options.ckpt_path, options.pretrained)
    trusted = import_trusted(options.trust)
    if options.get("data") is None:
        options = parser.parse_args([f"--data={json.dumps(data_of_run(options.ckpt_path, trusted))}", *args])
    with instantiation():
        made = parser.instantiate(options)
    trainer = evaluate(options, made.data, made.fid)
    print_results(trainer)
    if made.fid.written is not None:
        rank_zero_info(next_command("compare", made.fid.written, "OTHER/fid.json"))
