"""Arguments that cannot be parsed: what is wrong, in a sentence, with what was probably meant."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pydoc import locate
from typing import NoReturn

from jsonargparse import ArgumentParser

from lightning_vfs.commands.shortcuts import SHORTCUTS
from lightning_vfs.commands.yaml_files import configuration_files, line_of, plain_key
from lightning_vfs.core.errors import UsageError

MOST_LISTED = 30
"""Names that a message lists."""

_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
"""Types as people call them."""

_NO_CLASS = (
    r"Expected a dot import path string: (?P<name>\S+)",
    r"Problem with given class_path '(?P<name>[^']+)':\s+(?:module '[^']+' has no attribute|No module named)",
    r"Import path (?P<name>\S+)? ?does not correspond to a subclass of (?P<base>\w+)",
)
"""What jsonargparse says of a class that is not there, or of another kind."""


class ParserError(UsageError):
    """What a parser says, and which one: `explain` makes a sentence of it."""

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.message, self.parser = message, parser

    def explain(self, args: Sequence[str]) -> str:
        """What is wrong with the arguments, in one line; of a configuration, with its file and line."""
        told = _told(_Message(self.message, self.parser, args)).replace("?.", "?")
        return re.sub(r"\s*\n\s*", " ", told)


class ExplainingParser(ArgumentParser):
    """A parser that raises ParserError where others print their usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # it tries one type of a union
            super().error(message, ex)
        raise ParserError(message, getattr(ex, "subcommand_parser", None) or self) from ex


class _Message:
    """What jsonargparse says, and what is known of the arguments."""

    def __init__(self, text: str, parser: ArgumentParser, args: Sequence[str]) -> None:
        self.text, self.parser, self.args = text, parser, args
        keys = re.findall(r'Parser key "([^"]+)"', text)
        self.key = ".".join(keys[:2])
        self.outer = keys[0] if keys else ""

    def place(self, key: str) -> str:
        """An option as the user gave it: by a flag, or in a line of a configuration."""
        flags = [plain_key(arg.partition("=")[0]) for arg in self.args if arg.startswith("-")]
        if key in flags:
            return f"--{key}"
        if short := next((name for name in flags if name in SHORTCUTS and SHORTCUTS[name].stands_for == key), None):
            return f"--{short}"
        for file in reversed(configuration_files(self.args)):
            if (line := line_of(file, key)) is not None:
                return f"{file}, line {line}: {key}"
        return f"--{key}"

    def options(self) -> list[str]:
        """All options of the parser."""
        trains = self.parser.prog.endswith(" fit")
        short = [name for name, shortcut in SHORTCUTS.items() if trains or not shortcut.only_fit]
        own = list(self.parser.get_defaults().keys())
        return [*own, *(short if "trainer.max_steps" in own else ()), "config", "help", "help.all"]


def _told(said: _Message) -> str:
    text = said.text
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return _unknown_argument(said, found[1])
    if found := re.search(r"argument (?:-\w/)?--(\S+): expected", text):
        return f"--{found[1]} needs a value."
    if found := re.search(r"Problem with given class_path '([^']+)':\s+Option '([^']+)' is not accepted", text):
        return _unknown_option_of_class(said, *found.groups())
    if found := re.search(r"(?:does not accept|Option) (?:option )?'([^']+)'", text):
        return f"{said.place(found[1])}: there is no such option{_meant(found[1], said.options())}."
    if found := re.search(r"the following arguments are required: (.+)", text):
        return _missing(said, found[1].split(", "))
    if found := next(filter(None, (re.search(pattern, text) for pattern in _NO_CLASS)), None):
        return _no_class(said, found)
    if said.key and "Expected" in text:
        return _wrong_value(said)
    return text.split("Given value type:")[0].strip()


def _unknown_argument(said: _Message, argument: str) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} belongs to no option: options begin with --, and a value with spaces needs quotes."
    name = argument.partition("=")[0].lstrip("-")
    return f"There is no option --{name}{_meant(name, said.options(), '--')}."


def _unknown_option_of_class(said: _Message, class_path: str, option: str) -> str:
    kind = locate(class_path)
    own = ArgumentParser().add_class_arguments(kind, fail_untyped=False) if isinstance(kind, type) else []
    key = f"{said.outer}.{option}"
    place = said.place(key)
    meant = _meant(option, own, f"{'--' if place.startswith('--') else ''}{said.outer}.", others=True)
    return f"{place}: {class_path.rpartition('.')[2]} has no option {option!r}{meant}."


def _missing(said: _Message, names: Sequence[str]) -> str:
    if names[0].endswith("data"):
        return (
            "Say what to train on or to evaluate on: --config NAME (such as glyphs), or --data FolderSets --data.root "
            "FOLDER."
        )
    usage = said.parser.format_usage()
    prefix = f"{said.outer}." if said.outer else ""
    of_class = re.search(r"class_path '([^']+)'", said.text)
    whose = f" {of_class[1].rpartition('.')[2]} needs {'it' if len(names) == 1 else 'them'}." if of_class else ""
    named = [name if not of_class and f"--{name}" not in usage else f"--{prefix}{name}" for name in names]
    return f"Missing: {', '.join(named)}.{whose}"


def _no_class(said: _Message, found: re.Match[str]) -> str:
    name = found["name"] or _given_value(said.text)
    bases = {locate(path) for path in re.findall(r"(?:<class '|\[)([\w.]+\.\w+)", said.text.split("Errors:")[0])}
    kinds = {kind.__name__ for base in bases if isinstance(base, type) for kind in subclasses(base)}
    named = {name for name in kinds if not name.startswith("_")}
    base = found.groupdict().get("base")
    what = f"is no {base}" if base else "there is no such class"
    return f"{said.place(said.outer)} {name}: {what}{_meant(name.rpartition('.')[2], named, others=True)}."


def subclasses(kind: type) -> Iterator[type]:
    """Those that are loaded, at any depth."""
    own: list[type] = kind.__subclasses__()
    for below in own:
        yield below
        yield from subclasses(below)


def _wrong_value(said: _Message) -> str:
    text = said.text.rpartition("Parser key")[2]  # of an option of a class, what is said of the option alone
    if said.key != said.outer:
        text = text.partition("\n    - ")[0]
    value = _given_value(text)
    choices: list[str] = []
    for listed in re.findall(r"Literal(\[[^\]]+\])", text.partition("Errors:")[2] or text):
        choices += [str(choice) for choice in ast.literal_eval(listed) if str(choice) not in choices]
    types = re.findall(r"Expected a <class '(\w+)'>", text)
    wanted = [_WORDS.get(name, name) for name in dict.fromkeys(types) if name != "int" or not choices]
    if "a number" in wanted and "a whole number" in wanted:
        wanted.remove("a whole number")
    if choices:
        wanted.insert(0, f"one of {', '.join(choices)}")
    if not wanted:
        wanted = [text.rstrip(".") for text in re.findall(r"Expected (.+?)(?:\. Got value|\n|$)", text)[:1]]
    return f"{said.place(said.key)} is {value!r}, but must be {' or '.join(wanted)}{_meant(value, choices)}."


def _given_value(text: str) -> str:
    found = re.search(r"Got value: (.*)", text) or re.search(r"Given value: (.*)", text)
    value = found[1].strip() if found else ""
    nested = re.fullmatch(r"NestedArg\(key='.*?', val=(.*)\)", value)
    return nested[1].strip("'") if nested else value


def _meant(word: str, known: Iterable[str], prefix: str = "", others: bool = False) -> str:
    """`; did you mean ...?` if something known is near to a word; with `others`, all that is known if nothing is."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if not near:  # the last part alone, as `learning_rate` of `model.optimizer.learning_rate`
        last = {name.rpartition(".")[2]: name for name in known}
        near = [last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.8)]
    if not near and "." in word:  # the first part alone, as of `dta.root`
        first, _, rest = word.partition(".")
        parts = {name.partition(".")[0] for name in known}
        near = [f"{part}.{rest}" for part in difflib.get_close_matches(first, parts - {first}, n=1)]
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    return f"; there are {', '.join(known)}" if others and 0 < len(known) <= MOST_LISTED else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` as the end of a sentence, or nothing."""
    return _meant(word, known)
