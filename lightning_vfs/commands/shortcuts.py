"""Short options: for what people change, and for options of callbacks and loggers, which lists keep from flags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pydoc import locate
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace

from lightning_vfs.commands.yaml_files import configuration_files, plain_key
from lightning_vfs.core.errors import ConfigError, UsageError

CALLBACKS, LOGGER = "trainer.callbacks", "trainer.logger"


class Shortcut(NamedTuple):
    """A short option.

    Attributes:
        stands_for: the option in full, and what else it sets; of a list, an option of its members.
        member: class of the members of a list that it sets.
        only_fit: whether only `fit` takes it.
    """

    stands_for: str
    sets: tuple[tuple[str, str], ...] = ()
    member: str | None = None
    only_fit: bool = True


SHORTCUTS = {
    "steps": Shortcut("trainer.max_steps", (("trainer.max_epochs", "-1"),)),
    "batch_size": Shortcut("data.batch_size", only_fit=False),
    "learning_rate": Shortcut("model.optimizer.learning_rate"),
    "precision": Shortcut("trainer.precision", only_fit=False),
    "ema_decay": Shortcut(f"{CALLBACKS}.decay", member="lightning_vfs.EMACallback"),
    "save_every": Shortcut(
        f"{CALLBACKS}.every_n_train_steps", member="lightning.pytorch.callbacks.ModelCheckpoint"
    ),
    "sample_every": Shortcut(f"{CALLBACKS}.every_n_epochs", member="lightning_vfs.SampleGridCallback"),
    "eval_every": Shortcut(
        f"{CALLBACKS}.every_n_steps", ((f"{CALLBACKS}.every_n_epochs", "null"),), "lightning_vfs.FIDCallback"
    ),
    "name": Shortcut(f"{LOGGER}.name", member="lightning.pytorch.loggers.Logger", only_fit=False),
}  # fmt: skip


class Setting(NamedTuple):
    """A value for an option of members of a list.

    Attributes:
        flag: as the user gave it.
        key: the list, and the option of its members.
        value: as YAML.
        member: class of the members.
    """

    flag: str
    key: str
    value: str
    member: str


def spell_out(args: Sequence[str], subcommand: str) -> tuple[list[str], list[Setting]]:
    """Arguments with short options in full, and those that are options of members of a list.

    `--trainer.logger.NAME VALUE` is one of them too, where the configuration has a list of loggers.

    Raises:
        UsageError: a short option has no value, or contradicts what is given in full.
    """
    spelled: list[str] = []
    settings: list[Setting] = []
    logger_list = _has_logger_list(args)
    values = iter(range(len(args)))
    for i in values:
        name, equals, value = args[i].partition("=")
        short = SHORTCUTS.get(name.removeprefix("--")) if name.startswith("--") else None
        of_logger = re.fullmatch(r"--trainer\.logger\.(?:init_args\.)?(\w+)", name) if logger_list else None
        if (short is None or (short.only_fit and subcommand != "fit")) and of_logger is None:
            spelled.append(args[i])
            continue
        if not equals:
            if i + 1 == len(args):
                raise UsageError(f"{name} needs a value.")
            value = args[next(values)]
        if of_logger is not None:
            settings.append(Setting(name, f"{LOGGER}.{of_logger[1]}", value, "lightning.pytorch.loggers.Logger"))
            continue
        assert short is not None
        _refuse_contradiction(name, value, short, args)
        full = {short.stands_for: value, **dict(short.sets)}
        if short.member is None:
            spelled += [f"--{key}={setting}" for key, setting in full.items()]
        else:
            settings += [Setting(name, key, setting, short.member) for key, setting in full.items()]
    return spelled, settings


def _has_logger_list(args: Sequence[str]) -> bool:
    """Whether the configurations have a list of loggers, and no flag gives another."""
    if any(re.match(r"--trainer\.logger\+?(=|$)", arg) for arg in args):
        return False
    found: Any = None
    for file in configuration_files(args):
        trainer = (yaml.safe_load(file.read_text()) or {}).get("trainer")
        found = trainer.get("logger", found) if isinstance(trainer, dict) else found
    return isinstance(found, list)


def _refuse_contradiction(flag: str, value: str, short: Shortcut, args: Sequence[str]) -> None:
    """Raise UsageError if other arguments give what a short option stands for, and differ."""
    full = {short.stands_for: value, **dict(short.sets)}
    for arg, after in pairwise([*args, ""]):
        name, equals, given = arg.partition("=")
        given = given if equals else after
        if full.get(plain_key(name), given) != given:
            raise UsageError(
                f"{flag} {value} is short for --{short.stands_for} {value}, but there is {name} {given} too: leave one "
                "of them out."
            )


def apply(settings: Sequence[Setting], config: Namespace) -> None:
    """Give members of lists of the parsed configuration their options.

    Raises:
        ConfigError: there is no member that takes it.
    """
    for setting in settings:
        place, _, option = setting.key.rpartition(".")
        members = [
            member for member in _members(config[place]) if _is_a(member, setting.member) and _takes(member, option)
        ]
        if not members:
            kind = setting.member.rpartition(".")[2]
            raise ConfigError(
                f"{setting.flag} sets {option} of {kind}, but {place} of the configuration has no {kind} that takes "
                f"it: add one, by --{place}+={setting.member}, or leave {setting.flag} out."
            )
        for member in members:
            member["init_args"][option] = yaml.safe_load(setting.value)


def _members(values: Any) -> Iterator[Namespace]:
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, Namespace):
            yield value


def _is_a(member: Namespace, kind: str) -> bool:
    base, found = locate(kind), locate(member["class_path"])
    return isinstance(found, type) and isinstance(base, type) and issubclass(found, base)


def _takes(member: Namespace, option: str) -> bool:
    return option in member.get("init_args", Namespace())
