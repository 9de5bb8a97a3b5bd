"""Help fits a screen, is there at once, and says nothing that the parsers do not say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain

import pytest
from jsonargparse import capture_parser

from lightning_vfs.cli import SUBCOMMANDS, main
from lightning_vfs.commands import convert, data, evaluate, sample, verify
from lightning_vfs.commands.help import HELP
from lightning_vfs.commands.lightning import VFSCLI
from lightning_vfs.commands.shortcuts import SHORTCUTS
from lightning_vfs.data import FolderSets

TRAINER = ("fit", "validate", "test", "predict")


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_fits_a_screen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == main([name, "-h"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lightning-vfs {name} ")
    assert f"lightning-vfs {name} " in shown.partition("\nexample")[2]
    lines = HELP[name].splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 119
    assert "example" in shown


def test_it_needs_neither_torch_nor_a_parser() -> None:
    code = (
        "import sys; from lightning_vfs.cli import main\n"
        f"for name in {list(HELP)}: main([name, '--help'])\n"
        "print({'torch', 'jsonargparse', 'lightning', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


@pytest.fixture(scope="module")
def defaults() -> dict[str, dict]:
    """Options of every subcommand and their defaults."""
    parsers = {
        name: capture_parser(lambda module=module: module.run([]))
        for name, module in (
            ("convert", convert), ("data", data), ("evaluate", evaluate), ("sample", sample),
            ("verify", verify),
        )
    }  # fmt: skip
    for name in TRAINER:
        parsers[name] = _options_of(name)
    found = {name: dict(parser.get_defaults().items()) for name, parser in parsers.items()}
    parser = capture_parser(lambda: data.run([]))
    of_folders = {f"data.{key}": value for key, value in parser.get_defaults().items()}
    for name in (*TRAINER, "evaluate", "verify"):
        found[name] |= of_folders
    return found


class StoppedError(Exception):
    pass


def _options_of(name: str):
    class Only(VFSCLI):
        def parse_arguments(self, parser, args) -> None:
            raise StoppedError(self._options)

    with pytest.raises(StoppedError) as stopped:
        Only([name])
    return stopped.value.args[0]


def stated(text: str) -> Iterator[tuple[str, str | None]]:
    """Options that a help names, and the default that it gives in parentheses at the end of a clause."""
    body = text.partition("\nexample")[0]
    for clause in chain.from_iterable(re.split(r"[;,] (?=--|\.)", line) for line in body.splitlines()[1:]):
        found = re.match(r"\s*--([\w.]+)", clause)
        default = re.search(r"\(([^()]*)\)\.?$", clause.strip())
        if found is not None:
            yield found[1], default and default[1]


@pytest.mark.parametrize("name", [*TRAINER, "convert", "data", "evaluate", "sample", "verify"])
def test_options_and_defaults_are_those_of_the_parser(name: str, defaults: dict[str, dict]) -> None:
    options = list(stated(HELP[name]))
    assert len(options) > 5
    known = defaults[name]
    for option, default in options:
        if option in ("config", "model", "data", "help.all", "print_config"):
            continue
        full = option
        if option in SHORTCUTS and option not in known:
            assert name == "fit" or not SHORTCUTS[option].only_fit
            full = SHORTCUTS[option].stands_for
            if full not in known:  # of a callback or a logger
                continue
        assert full in known, f"{option} is no option of {name}"
        value = known[full]
        if default is not None and default[0] not in "a-z" and value is not None:
            shown = default.replace("[", "(").replace("]", ")").split(";")[0]
            says = str(value).replace("'", "").replace("[", "(").replace("]", ")").replace(",)", ")")
            assert says == shown or says.lower() == shown, f"{option}: {says} is the default, not {shown}"


@pytest.mark.parametrize("command", [["compare"], ["cache"], ["extractor", "fit"], ["demo"], ["push"]])
def test_options_are_those_of_all_options(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help.all"]) == 0
    known = capsys.readouterr().out
    options = {option for option, _ in stated(HELP[command[0]])}
    assert options and all(f"--{option}" in known for option in options)


def test_all_options_have_those_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help.all"]) == 0
    shown = capsys.readouterr().out
    for option in ("--trainer.max_steps", "--model.config.encoder.dim", "class_level", "on_unreadable", "few_shot_way"):
        assert option in shown
    assert FolderSets.__name__ in shown
    assert main(["sample", "--help.all"]) == 0
    assert "--guidance_interval" in capsys.readouterr().out
