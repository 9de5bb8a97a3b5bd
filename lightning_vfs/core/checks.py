"""Checks that configurations and callbacks make of their options."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from numbers import Integral
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lightning_vfs.core.errors import ConfigError


def check_choices(config: Any) -> None:
    """Raise ConfigError for a field whose value is not among its Literal's choices, or, of `Literal | str`, a path."""
    for name, hint in get_type_hints(type(config)).items():
        takes_path = str in get_args(hint)
        literal = get_args(hint)[0] if takes_path else hint
        value = getattr(config, name)
        if get_origin(literal) is not Literal or value in get_args(literal) or (takes_path and is_path(value)):
            continue
        allowed = ", ".join(map(repr, get_args(literal)))
        or_path = ", or the path of a custom one, such as 'my_package.MyOwn'" if takes_path else ""
        raise ConfigError(f"{type(config).__name__}.{name} is {value!r}; allowed: {allowed}{or_path}.")


def is_path(name: str) -> bool:
    """Whether a choice is the import path of something outside this package, such as `my_package.MyEncoder`."""
    return "." in name


def check_options(config: Any) -> None:
    """Raise ConfigError for options of an architecture of this package, which has its own fields."""
    if config.options and not is_path(config.architecture):
        raise ConfigError(
            f"{type(config).__name__}.options is {config.options!r}, but architecture is {config.architecture!r}, and "
            "options are for the path of a custom class: leave it out."
        )


def choose(name: str, choices: Mapping[str, Any]) -> Any:
    """What a name stands for: one of the choices, or what its import path leads to.

    Raises:
        ConfigError: nothing can be imported from that path.
    """
    if not is_path(name):
        return choices[name]
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{name} cannot be imported ({error}): give the path as in Python, package.module.Name, of something that "
            "is installed or in PYTHONPATH."
        ) from error


def check_whole_number(name: str, value: Any, minimum: int, or_none: bool = False) -> None:
    """Raise ConfigError for an option that is not a whole number of at least `minimum` (or None)."""
    if value is None and or_none:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ConfigError(
            f"{name} is {value!r}; it must be a whole number of at least {minimum}{', or null' if or_none else ''}."
        )


def check_at_least(owner: Any, minimum: int, *names: str, or_none: bool = False) -> None:
    """Raise ConfigError for a field that is not a whole number of at least `minimum` (or None)."""
    for name in names:
        check_whole_number(f"{type(owner).__name__}.{name}", getattr(owner, name), minimum, or_none)


def check_fraction(config: Any, *names: str) -> None:
    """Raise ConfigError for a field that is not in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ConfigError(f"{type(config).__name__}.{name} is {value}; it must be at least 0 and below 1.")


def as_tuples(config: Any, *names: str) -> None:
    """Make tuples of lists, as YAML and JSON give them."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            object.__setattr__(config, name, tuple(value))


def check_unet(config: Any) -> None:
    """Raise ConfigError for sizes of a UNet that cannot be built."""
    name = type(config).__name__
    check_at_least(config, 2, "channels")
    check_at_least(config, 1, "num_res_blocks", "heads")
    widths = [config.channels * mult for mult in config.channel_mult]
    if not widths or any(not isinstance(mult, int) or mult < 1 for mult in config.channel_mult):
        raise ConfigError(
            f"{name}.channel_mult is {config.channel_mult}; it must be whole numbers, one for each level."
        )
    if any(width % config.heads for width in widths):
        raise ConfigError(
            f"{name}.channels is {config.channels}, so the levels are {', '.join(map(str, widths))} wide, but heads is "
            f"{config.heads}: every width must be a multiple of it."
        )


def check_mlp(config: Any) -> None:
    """Raise ConfigError for an mlp_ratio that is not above 0, or a dropout out of [0, 1)."""
    name = type(config).__name__
    if config.mlp_ratio <= 0:
        raise ConfigError(f"{name}.mlp_ratio is {config.mlp_ratio}; it must be above 0.")
    check_fraction(config, "dropout")
