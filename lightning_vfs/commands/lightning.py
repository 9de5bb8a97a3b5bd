"""fit, validate, test and predict: Lightning's CLI, with the set contract checked first."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any, cast

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vfs.callbacks import EMACallback, FIDCallback, SampleGridCallback, ThroughputCallback
from lightning_vfs.callbacks.predictions import PredictionWriter
from lightning_vfs.callbacks.preemption import PreemptionCheckpoint
from lightning_vfs.callbacks.progress import RunProgressBar
from lightning_vfs.callbacks.summary import RunSummary
from lightning_vfs.commands import last_run, own_model, recipes, shortcuts
from lightning_vfs.commands.closing import files_of_run, next_command, sampling_command
from lightning_vfs.commands.configurations import fingerprint_file, own_configuration
from lightning_vfs.commands.last_checkpoint import (
    HELP,
    LAST,
    LAST_IF_ANY,
    SameCheckpoint,
    last_checkpoint,
    nothing_left,
)
from lightning_vfs.commands.machine import instantiation, trainer_options
from lightning_vfs.commands.results import print_results
from lightning_vfs.commands.trust import HELP as TRUST_HELP
from lightning_vfs.commands.trust import import_trusted
from lightning_vfs.commands.usage import ExplainingParser
from lightning_vfs.core import contract
from lightning_vfs.core.checks import choose, is_path
from lightning_vfs.core.config import DATA_FIELDS, SetConfig, VFSConfig
from lightning_vfs.core.errors import CheckpointError, ConfigError, EvaluationError
from lightning_vfs.core.files import local_path, replacing
from lightning_vfs.core.fingerprint import Fingerprint, fingerprint
from lightning_vfs.core.seeding import global_seed
from lightning_vfs.data import SetDataModule
from lightning_vfs.data.catalog import DATA_SETS
from lightning_vfs.modules import VFSDDPM
from lightning_vfs.training.checkpoints import read_checkpoint
from lightning_vfs.training.nonfinite import why_not_finite
from lightning_vfs.training.places import COPIES

WRITTEN_BY_LIGHTNING = "# lightning.pytorch=="
"""First characters of a configuration that a run has written."""


class _Parser(ExplainingParser, LightningArgumentParser):
    """Lightning's parser, which explains what is wrong."""


class VFSCLI(LightningCLI):
    """LightningCLI for VFSDDPM and the data modules.

    The data's set size, image size and channels become the model's. With a checkpoint, the model is the checkpoint's,
    flags decide on the optimizer and the like, and a flag that contradicts the weights is an error that names it.
    `--ckpt_path last` is the newest checkpoint of this configuration's runs. `fit` writes one when it gets SIGTERM.

    Raises:
        ConfigError: flags that contradict each other or the checkpoint.
        CheckpointError: the file is not a lightning_vfs checkpoint, or there is no last one.
        SetSizeMismatchError: the checkpoint's weights and the data state different set sizes.
    """

    def __init__(self, args: Sequence[str]) -> None:
        # Other ranks are started with sys.argv, so the arguments have to be there.
        before = sys.argv
        args = last_run.with_configuration(args)
        self._recipe = recipes.with_recipe(args) if args[0] == "fit" else None
        self._model_class, args = own_model.own_model(self._recipe.args if self._recipe else args)
        sys.argv = [before[0], *args]
        try:
            super().__init__(
                self._model_class,
                SetDataModule,
                subclass_mode_data=True,
                seed_everything_default=0,
                trainer_defaults={"use_distributed_sampler": False},
                save_config_callback=SaveRunConfig,
                save_config_kwargs={"overwrite": True},
                parser_class=_Parser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except _NothingLeftError as finished:
            rank_zero_info(str(finished))
        finally:
            sys.argv = before

    def after_instantiate_classes(self) -> None:
        self._check_mesh()
        if self._recipe is not None and self.trainer.is_global_zero:
            self._say_recipe(self._recipe.says)
        self.model.asked = self._asked
        if self._read is not None:
            self.trainer.callbacks.append(SameCheckpoint(self._read))  # type: ignore[attr-defined]

    def instantiate_classes(self) -> None:
        """Make data, model and trainer.

        Raises:
            VFSError: what a class refuses.
            ConfigError: a class needs a package that is not installed; and what `instantiate_trainer` raises.
        """
        with instantiation():
            super().instantiate_classes()

    def _say_recipe(self, says: str) -> None:
        """Say which recipe is taken, how long it takes and what it writes."""
        rank_zero_info(says)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if (expected := recipes.expectation(self.model, self.datamodule, self.trainer)) is not None:
            rank_zero_info(expected)
        folder = self.trainer.log_dir or self.trainer.default_root_dir
        size = COPIES * sum(value.numel() * value.element_size() for value in self.model.parameters()) / 2**20
        rank_zero_info(
            f"Files: {folder}, with checkpoints of about {size:,.0f} MiB, pictures, figures (tensorboard --logdir "
            f"{Path(folder).parent}), and config.yaml, which repeats the run: --config {folder}/config.yaml."
        )

    def _check_mesh(self) -> None:
        """Refuse sizes of ModelParallelStrategy that do not match the run."""
        trainer = self.trainer
        if not isinstance(trainer.strategy, ModelParallelStrategy):
            return
        given = self.config[self.subcommand]["trainer"]["strategy"]
        options = given["init_args"] if isinstance(given, Namespace) else {}
        sizes = {"data_parallel_size": trainer.num_nodes, "tensor_parallel_size": trainer.num_devices}  # if "auto"
        sizes |= {name: options[name] for name in sizes if options.get(name, "auto") != "auto"}
        ranks = trainer.num_nodes * trainer.num_devices
        if math.prod(sizes.values()) != ranks:
            raise ConfigError(
                f"ModelParallelStrategy has data_parallel_size {sizes['data_parallel_size']} and "
                f"tensor_parallel_size {sizes['tensor_parallel_size']}, but the run has {ranks} processes "
                f"(--trainer.devices {trainer.num_devices}, --trainer.num_nodes {trainer.num_nodes}): set "
                f"--trainer.strategy.init_args.data_parallel_size {ranks}."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add RunProgressBar and RunSummary, unless the configuration has others or turns them off.

        Raises:
            ConfigError: the trainer's options do not work together, or not on this machine.
        """
        options = self.config_init[self.config_init["subcommand"]]["trainer"]
        given = options["callbacks"] or []
        callbacks: list[Callback] = list(given) if isinstance(given, list) else [given]
        if options["logger"] is False and any(isinstance(callback, LearningRateMonitor) for callback in callbacks):
            callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
            rank_zero_info("LearningRateMonitor is left out: with --trainer.logger false it has nowhere to write.")
        if options["fast_dev_run"]:
            # Lightning says that it saves nothing, but a `save_last` saves at the end.
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        for logger in options["logger"] if isinstance(options["logger"], list) else ():
            if isinstance(logger, CSVLogger | TensorBoardLogger):
                # The next number is taken when it is first asked for: before one of them makes the folder, all get it.
                _ = logger.version
        ours = (ProgressBar, RunProgressBar, "enable_progress_bar"), (ModelSummary, RunSummary, "enable_model_summary")
        for kind, own, flag in ours:
            wanted = options[flag] is not False and not options["barebones"]
            if wanted and not any(isinstance(callback, kind) for callback in callbacks):
                callbacks.append(own())
        if any(isinstance(callback, ModelSummary) for callback in callbacks):
            kwargs["enable_model_summary"] = False  # Lightning would say that it adds no other
        with trainer_options():
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def before_fit(self) -> None:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, PreemptionCheckpoint) for callback in callbacks):
            callbacks.append(PreemptionCheckpoint())

    def after_fit(self) -> None:
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # asks the other ranks
        saved = getattr(self.trainer.checkpoint_callback, "last_model_path", "")
        checkpoint = f"; last checkpoint: {saved}" if saved else ""
        rank_zero_info(f"Trained to step {self.trainer.global_step}. Log: {folder}{checkpoint}")
        self._say_files(folder)
        if saved:
            rank_zero_info(sampling_command(self.model.config, "--ckpt_path", saved))

    def _say_files(self, folder: str) -> None:
        if self.trainer.is_global_zero and (files := files_of_run(self.trainer, folder)):
            rank_zero_info(files)

    def fit(self, **kwargs: Any) -> None:
        try:
            self.trainer.fit(ckpt_path=self._checkpoint, **kwargs)
        except SystemExit:  # after a signal, which all ranks have seen
            self._say_files(self.trainer.log_dir or self.trainer.default_root_dir)
            raise

    def validate(self, verbose: bool = True, **kwargs: Any) -> None:
        self.trainer.validate(ckpt_path=self._checkpoint, verbose=False, **kwargs)
        if verbose:
            print_results(self.trainer)
        self._check_finite()
        self._say_record()

    def test(self, verbose: bool = True, **kwargs: Any) -> None:
        self.trainer.test(ckpt_path=self._checkpoint, verbose=False, **kwargs)
        if verbose:
            print_results(self.trainer)
        self._check_finite()
        self._say_record()

    def predict(self, return_predictions: bool | None = None, **kwargs: Any) -> None:
        writer = PredictionWriter()
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        self.trainer.predict(ckpt_path=self._checkpoint, return_predictions=False, **kwargs)
        rank_zero_info(f"Pictures, support and generated image of every test set: {writer.folder(self.trainer)}")

    def _say_record(self) -> None:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        written = [c.written for c in callbacks if isinstance(c, FIDCallback) and c.written is not None]
        if written:
            rank_zero_info(next_command("compare", written[0], "OTHER/fid.json"))

    def _check_finite(self) -> None:
        """Raise EvaluationError for figures that are not finite numbers."""
        figures = self.trainer.callback_metrics
        broken = [name for name, value in sorted(figures.items()) if not value.isfinite() and "_std" not in name]
        if broken:
            raise EvaluationError(f"{', '.join(broken)}: not finite; {why_not_finite(self.model)}.")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the one that is asked for, since building its options takes a while; --ckpt_path is defined here."""
        known = LightningCLI.subcommands().items()
        return {name: {*skipped, "ckpt_path"} for name, skipped in known if name == sys.argv[1]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self._options = parser
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=HELP)
        parser.add_argument("--trust", type=str | None, default=None, help=TRUST_HELP)
        parser.add_argument(f"--{own_model.KEY}", type=str | None, default=None, help=own_model.HELP)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        args, settings = shortcuts.spell_out(sys.argv[1:], sys.argv[1])
        prints = settings and "--print_config" in args
        args = [arg for arg in args if not (prints and arg == "--print_config")]
        self.config = parser.parse_args(args)
        config = self.config[self.config["subcommand"]]
        if settings:
            shortcuts.apply(settings, config)
            self._validate(parser)
        if prints:  # the parser would have printed it without the settings
            print(self._options.dump(config), end="")
            raise SystemExit(0)
        given = parser.parse_args(args, defaults=False)[self.config["subcommand"]]
        self._given_model = dict(_leaves(given.get("model", Namespace())))
        self._seed = "random" if config["seed_everything"] is True else None
        # Set aside: Lightning would let the hyper-parameters of a checkpoint here override all flags.
        self._checkpoint: str | None = config["ckpt_path"]
        config["ckpt_path"] = None

    def _validate(self, parser: LightningArgumentParser) -> None:
        """Check options that were set after the parser had checked all of them."""
        try:
            parser.validate(self.config)
        except (TypeError, KeyError) as error:
            parser.error(str(error), error)

    def before_instantiate_classes(self) -> None:
        """Reconcile a checkpoint's hyper-parameters with the flags, by the contract."""
        config = self.config[self.subcommand]
        self._import_named(config["trust"])
        config["trainer"] = _located(config["trainer"])
        checkpoint = self._read = None
        if self._checkpoint and "://" in self._checkpoint:
            local_path(self._checkpoint, "--ckpt_path")
        self._asked = self._asked_of_run(config)
        if self._checkpoint in (LAST, LAST_IF_ANY):
            subcommand: str = self.config["subcommand"]
            found = last_checkpoint(
                self._checkpoint, subcommand, config["trainer"], lambda: self._fingerprint(config["data"])
            )
            self._checkpoint = str(found[0]) if found else None
            if found:
                reached = nothing_left(found[1], config["trainer"]) if subcommand == "fit" else None
                if reached is not None:
                    raise _NothingLeftError(
                        f"This run is finished: {reached} ({found[0]}). To train further, raise that; to start again, "
                        "leave --ckpt_path out."
                    )
                # Processes that this one starts may look later, when there is a newer one.
                sys.argv.append(f"--ckpt_path={found[0]}")
        # `best` and `hpc` are found by the trainer; the model's load hook then checks them.
        if self._checkpoint and self._checkpoint not in ("best", "hpc"):
            checkpoint = read_checkpoint(self._checkpoint)
            self._read = f"{self._checkpoint} of step {checkpoint.get('global_step')}"
            self._take_hyper_parameters(config["model"], checkpoint["hyper_parameters"])
        config["ckpt_path"] = self._checkpoint
        data = config["data"]["init_args"]
        if checkpoint is None:
            self._refuse_contradicting_data(data)
            linked = {field: data[field] for field in DATA_FIELDS}
            sets = SetConfig(**{**vars(config["model"]["config"]["sets"]), **linked})
        else:
            sets = self._agree_with_weights(config, checkpoint, data).sets
        config["model"]["config"]["sets"] = Namespace(asdict(sets))

    def _import_named(self, trust: str | None) -> None:
        """Import the custom networks that the user names, so that checkpoints may name them too."""
        import_trusted(trust)
        for part in ("encoder", "denoiser"):
            name = self._given_model.get(f"config.{part}.architecture")
            if isinstance(name, str) and is_path(name):
                choose(name, {})

    def _asked_of_run(self, config: Namespace) -> Fingerprint:
        """Parts of the run's fingerprint that the configuration states, before a checkpoint replaces them."""
        model, data = config["model"], config["data"]
        may_change = getattr(locate(data["class_path"]), "may_change", SetDataModule.may_change)
        options = {name: value for name, value in vars(data["init_args"]).items() if name not in may_change}
        own = {name: value for name, value in vars(model).items() if name not in signature(VFSDDPM).parameters}
        kind = {"class": f"{self._model_class.__module__}.{self._model_class.__qualname__}", **own}
        return fingerprint(kind, model["config"].as_dict(), model["optimizer"].as_dict(), options, self._seed)

    def _fingerprint(self, data: Namespace) -> Fingerprint:
        """The run's whole fingerprint, before anything of the run is built."""
        parser = ArgumentParser()
        parser.add_subclass_arguments(SetDataModule, "data")
        identity = parser.instantiate(Namespace(data=data.clone()))["data"].identity()
        return fingerprint({}, {}, {}, identity, global_seed()) | self._asked

    def _take_hyper_parameters(self, model: Namespace, hyper_parameters: dict[str, Any]) -> None:
        """The checkpoint's hyper-parameters become the model's, except for what the user gave.

        Raises:
            ConfigError: a flag contradicts the checkpoint's weights.
        """
        # An older checkpoint lacks the options that came later: it was trained with their defaults.
        config = VFSConfig.from_dict(hyper_parameters["config"]).to_dict()
        for name, value in _leaves({**hyper_parameters, "config": config}):
            part = name.removeprefix("config.")
            given = self._given_model.get(name, value)
            given = list(given) if isinstance(given, tuple) else given
            weights_decide = name.startswith("config.") and part not in contract.MAY_DIFFER
            if weights_decide and given != value and part != "sets.set_size":
                raise ConfigError(
                    f"--model.{name} is {given!r}, but the checkpoint was trained with {value!r}, and its weights fit "
                    f"no other. Leave --model.{name} out (or set it to {value!r} in the YAML), or train without "
                    "--ckpt_path."
                )
            model[name] = value if weights_decide else given

    def _refuse_contradicting_data(self, data: Namespace) -> None:
        for field in DATA_FIELDS:
            if field not in data:
                raise ConfigError(
                    f"The data module does not state its {field}: it must take set_size, image_size and channels as "
                    "arguments, as every SetDataModule does."
                )
            given = self._given_model.get(f"config.sets.{field}", data[field])
            if given != data[field]:
                raise ConfigError(
                    f"--model.config.sets.{field} is {given}, but --data.{field} is {data[field]}: give it once, on "
                    f"the data (--data.{field}); the model takes it from there."
                )

    def _agree_with_weights(self, config: Namespace, checkpoint: dict[str, Any], data: Namespace) -> VFSConfig:
        trained = VFSConfig.from_dict(checkpoint["hyper_parameters"]["config"])
        for field in ("image_size", "channels"):
            if data[field] != getattr(trained.sets, field):
                raise CheckpointError(
                    f"The checkpoint was trained with {field} {getattr(trained.sets, field)}, but the data has "
                    f"{data[field]}: set --data.{field} {getattr(trained.sets, field)}, or train a model for this data."
                )
        stated = contract.with_set_size(trained, self._given_model.get("config.sets.set_size", trained.sets.set_size))
        return contract.config_for_checkpoint(
            checkpoint, stated, [data["set_size"]], config["model"]["on_set_size_mismatch"]
        )


PLACES = ("default_root_dir", "save_dir", "root_dir", "dirpath", "dirname", "record", "save_images")
"""Options of trainers, loggers and callbacks that say where files go."""


def _located(values: Any, option: str = "") -> Any:
    """Options with a leading `~` and, in places of files, environment variables expanded: not every library does so.

    Raises:
        ConfigError: a place of files is a URL.
    """
    if isinstance(values, Namespace):
        return Namespace({name: _located(value, name) for name, value in vars(values).items()})
    if isinstance(values, dict):
        return {name: _located(value, name) for name, value in values.items()}
    if isinstance(values, list):
        return [_located(value, option) for value in values]
    if not isinstance(values, str):
        return values
    if option in PLACES:
        return str(local_path(os.path.expandvars(values), option))
    return os.path.expanduser(values) if values.startswith("~") else values


class _NothingLeftError(Exception):
    """The run that is to be resumed is finished; says why."""


class _FindLast(VFSCLI):
    """Stops where `--ckpt_path last` is found."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self._import_named(config["trust"])
        config["trainer"] = _located(config["trainer"])
        self._asked = self._asked_of_run(config)
        found = last_checkpoint(LAST, "validate", config["trainer"], lambda: self._fingerprint(config["data"]))
        assert found is not None
        raise _FoundError(str(found[0]))


class _FoundError(Exception):
    """The checkpoint that was searched for is found."""


def find_last(configurations: Sequence[Path]) -> str:
    """The newest checkpoint of the runs of a configuration, as `fit --ckpt_path last` finds it.

    Raises:
        CheckpointError: there is none.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")
    try:
        _FindLast(["validate", *(f"--config={path}" for path in configurations)])
    except _FoundError as found:
        return str(found)
    finally:  # the caller has no run, and no seed
        os.environ.pop("PL_GLOBAL_SEED", None)
        if seed is not None:
            os.environ["PL_GLOBAL_SEED"] = seed
    raise AssertionError("it stops before anything runs")


class SaveRunConfig(SaveConfigCallback):
    """Write a run's configuration and fingerprint next to its log, but over no file of the user or of another run.

    In a folder that another run has, they are `config-v1.yaml` and `fingerprint-v1.json`.

    Raises:
        ConfigError: there is a `config.yaml` that no run has written.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before Lightning writes it, on every rank; a fast_dev_run writes nothing."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._folder = folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks the other ranks
        path = folder / self.config_filename
        if path.is_file() and not path.read_text(errors="replace").startswith(WRITTEN_BY_LIGHTNING):
            raise ConfigError(
                f"The run's configuration would overwrite {path}, which no run has written: set "
                "--trainer.default_root_dir FOLDER, or move the file."
            )
        if stage == "fit":
            if trainer.is_global_zero:
                self.config_filename = own_configuration(folder, cast(VFSDDPM, pl_module).fingerprint).name
        elif trainer.strategy.broadcast(path.is_file()):
            return  # it is that of the run that trained here
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # Only the first rank comes here.
            with replacing(fingerprint_file(self._folder / self.config_filename)) as temporary:
                temporary.write_text(json.dumps(pl_module.fingerprint, indent=2) + "\n")


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    for name, value in (vars(values) if isinstance(values, Namespace) else values).items():
        if isinstance(value, Namespace | dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


SHOWN = {
    "data": tuple(DATA_SETS.values()),
    "trainer.callbacks": (EMACallback, FIDCallback, SampleGridCallback, ThroughputCallback),
}
"""Classes whose options the help has: those that a configuration names are not among the parser's own."""


def print_help(subcommand: str) -> None:
    """Print all options of a subcommand, and those of our data sets and callbacks."""
    asked = [
        ["--help"],
        *([f"--{key}.help", f"{kind.__module__}.{kind.__name__}"] for key, kinds in SHOWN.items() for kind in kinds),
    ]
    for args in asked:
        with suppress(SystemExit):
            VFSCLI([subcommand, *args])
        print()
