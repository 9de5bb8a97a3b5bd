"""lightning-vfs compare: what it prints, and its exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_vfs.cli import main
from tests.evaluation.test_record import changed, plain

NONE = dict.fromkeys(("floor_images", "chance", "copier", "standard_error"))


@pytest.fixture
def compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Compares two records given as plain values: the exit status, and the printed lines."""

    def run(first: dict[str, Any], second: dict[str, Any]) -> tuple[int, list[str]]:
        for name, values in (("a.json", first), ("b.json", second)):
            (tmp_path / name).write_text(json.dumps(values))
        status = main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
        said = capsys.readouterr()
        assert said.err == ""
        return status, said.out.splitlines()

    return run


def cells(lines: list[str], figure: str) -> list[str]:
    """The table's row of a figure."""
    (row,) = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if figure in line and "│" in line]
    return row


def test_comparable_figures_stand_side_by_side(compared, tmp_path: Path) -> None:
    second = changed("model.global_step", 2000)
    second["figures"]["fid/out"] = {
        "value": 4.25,
        "floor": None,
        **dict.fromkeys(("floor_images", "chance", "copier", "standard_error")),
    }
    status, lines = compared(plain(), second)
    assert status == 0
    verdict = "out: copies its support: its fid, precision and accuracy say nothing"
    assert lines[:2] == [f"first:  {tmp_path / 'a.json'}", f"second: {tmp_path / 'b.json'}"]
    assert lines[2:4] == [f"first, {verdict}", f"second, {verdict}"]
    header = next(line for line in lines if "floor" in line)
    titles = [cell.strip() for cell in header.split("┃")[1:-1]]
    assert titles == [
        "figure",
        "first",
        "second",
        "second - first",
        "floor, first",
        "floor, second",
        "copier, first",
        "copier, second",
    ]
    assert cells(lines, "fid/out") == ["fid/out", "4.5", "4.25", "-0.25", "0.5", "-", "0.25", "-"]
    end = lines.index("comparable")
    assert lines[end:] == [
        "comparable",
        "remarks:",
        "  global_step: 1,000 against 2,000: this is what is compared",
    ]


def test_without_remarks_there_is_nothing_below(compared) -> None:
    status, lines = compared(plain(), plain())
    assert (status, lines[-1]) == (0, "comparable")


def test_every_reason_is_printed_on_a_line_of_its_own(compared) -> None:
    second = changed("features.extractor", "glyph-cnn", changed("splits.out.num_real_images", 10000))
    second = changed("sampling.seed", 1, second)
    status, lines = compared(plain(), second)
    assert status == 1 and "comparable" not in lines
    assert lines[lines.index("not comparable:") :] == [
        "not comparable:",
        "  num_real_images of split out: 1,000 against 10,000: FID is biased by the number of images",
        "  extractor: inception-v3-compat against glyph-cnn: distances in different feature spaces",
        "remarks:",
        "  seed: 0 against 1: other noise, and other supports; figures vary with it by chance",
    ]


def test_figures_of_one_alone_and_names_in_brackets_are_shown(compared) -> None:
    first, second = plain(), plain()
    first["figures"]["fid[glyph-cnn]/class/:smile:"] = {
        "value": 0,
        "floor": 0,
        **dict.fromkeys(("floor_images", "chance", "copier", "standard_error")),
    }
    second["figures"]["kid/out"] = {
        "value": "NaN",
        "floor": 0.125,
        **dict.fromkeys(("floor_images", "chance", "copier", "standard_error")),
    }
    status, lines = compared(first, second)
    assert status == 0
    name = "fid[glyph-cnn]/class/:smile:"
    assert cells(lines, "smile") == [name, "0", "-", "-", "0", "-", "-", "-"]
    assert cells(lines, "kid/out") == ["kid/out", "-", "nan", "-", "-", "0.125", "-", "-"]
    assert f"  figures: only the first has {name}; only the second has kid/out: not compared" in lines


def test_a_narrow_terminal_cuts_no_number(compared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    name = "fid[some-extractor]/class/" + "x" * 90
    first = plain()
    first["figures"] = {name: first["figures"]["fid/out"]}
    _, lines = compared(first, first)
    assert cells(lines, name) == [name, "4.5", "4.5", "0", "0.5", "0.5", "0.25", "0.25"]


def test_what_is_no_record_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(plain()))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"EvaluationError: {tmp_path / 'b.json'} cannot be read (No such file or directory): "
        "give the fid.json of an evaluation.\n"
    )


def test_a_missing_argument_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a.json"]) == 2
    assert "second" in capsys.readouterr().err


def test_help_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "--help.all"):
        assert main(["compare", flag]) == 0
        assert "the record of an evaluation, fid.json" in capsys.readouterr().out
    assert "lightning_vfs.commands.compare" in sys.modules
