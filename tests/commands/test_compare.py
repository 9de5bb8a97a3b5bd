"""lightning-vfs compare: what it prints, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_vfs.cli import main
from lightning_vfs.evaluation.intervals import standard_error
from tests.evaluation.test_record import changed, plain


def figure(value: Any, floor: float | None = None, **fields: Any) -> dict[str, Any]:
    """A figure as plain values."""
    return (
        {"value": value, "floor": floor}
        | dict.fromkeys(("floor_images", "chance", "copier", "standard_error"))
        | fields
    )


def judged(value: float, spread: float = 0.1, shift: int = 0, **fields: Any) -> dict[str, Any]:
    """With replicates that vary around the value."""
    replicates = [value + spread * ((7 * i + shift) % 20 - 9.5) / 100 for i in range(20)]
    return figure(value, replicates=replicates, standard_error=standard_error(replicates), **fields)


@pytest.fixture
def compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Compares two records given as plain values: the exit status, and the printed lines."""

    def run(first: dict[str, Any], second: dict[str, Any], *options: str) -> tuple[int, list[str]]:
        for name, values in (("a.json", first), ("b.json", second)):
            (tmp_path / name).write_text(json.dumps(values))
        status = main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options])
        said = capsys.readouterr()
        assert said.err == ""
        return status, said.out.splitlines()

    return run


def cells(lines: list[str], figure: str) -> list[str]:
    """The table's row of a figure."""
    (row,) = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if figure in line and "│" in line]
    return row


def test_comparable_figures_stand_side_by_side(compared, tmp_path: Path) -> None:
    first, second = plain(), changed("model.global_step", 2000)
    first["figures"]["fid/out"] = judged(4.5, floor=0.5, copier=0.25)
    second["figures"]["fid/out"] = judged(4.25)
    status, lines = compared(first, second)
    assert status == 0
    verdict = "out: copies its support: its fid, precision and accuracy say nothing"
    assert lines[:2] == [f"first:  {tmp_path / 'a.json'}", f"second: {tmp_path / 'b.json'}"]
    assert lines[2:4] == [f"first, {verdict}", f"second, {verdict}"]
    header = next(line for line in lines if "floor" in line)
    titles = [cell.strip() for cell in header.split("┃")[1:-1]]
    assert titles == ["figure", "first", "second", "second - first", "95% interval", "verdict", "floor", "copier"]
    # The classes that are harder are so for both.
    expected = ["fid/out", "4.5 ± 0.025", "4.25 ± 0.025", "-0.25", "[-0.25, -0.25]", "lower", "0.5", "0.25"]
    assert cells(lines, "fid/out") == expected
    end = lines.index("comparable")
    assert lines[end:] == [
        "comparable",
        "remarks:",
        "  global_step: 1,000 against 2,000: this is what is compared",
        "out: intervals are for these 2 classes alone: groups are of episodes, not of classes",
        "one training run each: of these checkpoints, not of the methods",
    ]


def test_a_difference_has_an_interval_and_a_verdict(compared) -> None:
    """That of scipy's paired t-test; a difference that is not shown is not denied either."""
    first, second = plain(), plain()
    first["figures"] = {
        "fid/out": judged(10.0, 5.0), "recall/out": judged(0.5, 0.01), "copy_rate/out": judged(0.1, 0.01),
        "few_shot_accuracy[x]/out": judged(0.99, 0.01), "novel_accuracy/out": judged(0.2, 0.5),
    }  # fmt: skip
    second["figures"] = {
        "fid/out": judged(11.0, 5.0, 1), "recall/out": judged(0.501, 0.01, 1), "copy_rate/out": judged(0.15, 0.01, 1),
        "few_shot_accuracy[x]/out": judged(0.98, 0.001), "novel_accuracy/out": judged(0.25, 0.5, 1),
    }  # fmt: skip
    _, lines = compared(first, second)
    verdicts = {name: cells(lines, name)[5] for name in first["figures"]}
    assert verdicts == {
        "fid/out": "undecided",
        "recall/out": "no difference",
        "copy_rate/out": "higher",
        "few_shot_accuracy[x]/out": "lower, too few errors",
        "novel_accuracy/out": "undecided",
    }
    apart = 19 * (np.array(first["figures"]["fid/out"]["replicates"]) - second["figures"]["fid/out"]["replicates"])
    low, high = stats.ttest_1samp(apart - apart.mean() + 1.0, 0).confidence_interval()
    assert cells(lines, "fid/out")[4] == f"[{low:.3g}, {high:.3g}]"


def test_a_margin_is_the_users(compared, tmp_path: Path) -> None:
    first, second = plain(), plain()
    first["figures"] = {name: judged(10.0, 1.0) for name in ("fid[x]/out", "kid/out", "kid/in")}
    second["figures"] = {name: judged(10.01, 1.0, 1) for name in first["figures"]}
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]

    def verdicts(*margins: str) -> list[str]:
        _, lines = compared(first, second, *(["--margin", *margins] if margins else []))
        return [cells(lines, name)[5] for name in first["figures"]]

    assert verdicts() == ["no difference"] * 3
    assert verdicts("0.02") == ["undecided"] * 3
    assert verdicts("0.02", "fid=1", "kid/in=1") == ["no difference", "undecided", "no difference"]
    for wrong in ("fid", "fid=", "=1", "nan", "0", "fid=-1", "inf"):
        assert main(["compare", *paths, "--margin", wrong]) == 1


def test_several_training_runs_are_compared_by_their_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {}
    for side, values in {"a": (4.0, 5.0, 4.5), "b": (6.0, 8.0, 7.5, 9.0), "c": (6.0,)}.items():
        for i, value in enumerate(values):
            record = plain() | {"figures": {"fid/out": judged(value, 0.0)}}
            (tmp_path / f"{side}{i}.json").write_text(json.dumps(record))
            paths.setdefault(side, []).append(str(tmp_path / f"{side}{i}.json"))
    assert main(["compare", "--first", *paths["a"], "--second", *paths["b"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    low, high = stats.ttest_ind((6.0, 8.0, 7.5, 9.0), (4.0, 5.0, 4.5), equal_var=False).confidence_interval()
    expected = ["fid/out", "4.5 ± 0.29", "7.625 ± 0.62", "3.125", f"[{low:.3g}, {high:.3g}]", "higher"]
    assert cells(lines, "fid/out")[:6] == expected
    assert f"first ({paths['a'][1]}), out: copies its support: its fid, precision and accuracy say nothing" in lines
    assert lines[-1] == "3 and 4 training runs: of the methods"
    assert main(["compare", "--first", *paths["a"], "--second", *paths["c"]]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("one training run of the second: taken to vary from run")


def test_records_that_do_not_compare_have_no_interval(compared, tmp_path: Path) -> None:
    first, second = plain(), changed("sampling.steps", 20)
    first["figures"]["fid/out"], second["figures"]["fid/out"] = judged(4.5), judged(8.0)
    status, lines = compared(first, second)
    assert status == 1 and cells(lines, "fid/out")[3:6] == ["3.5", "-", "-"]
    assert not any("training run" in line for line in lines)
    paths = [str(tmp_path / name) for name in ("a.json", "a.json", "b.json")]
    assert main(["compare", "--first", *paths[:2], "--second", paths[2]]) == 1


@pytest.mark.parametrize(
    "args",
    [["a", "b", "c"], ["a", "b", "--first", "c"], ["--first", "a"], ["--second", "a"], ["a", "--margin", "1"], []],
)
def test_two_sides_are_needed(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *args]) == 2
    assert "--second" in capsys.readouterr().err


def test_torch_is_not_imported(tmp_path: Path) -> None:
    record = plain() | {"figures": {"fid/out": judged(1.0)}}
    (tmp_path / "a.json").write_text(json.dumps(record))
    code = "import sys; from lightning_vfs.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    args = ["compare", *[str(tmp_path / "a.json")] * 2]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_remarks_there_is_nothing_below(compared) -> None:
    old = plain()
    del old["figures"]["fid/out"]["replicates"]
    status, lines = compared(old, plain())
    assert (status, lines[-1]) == (0, "comparable")
    assert cells(lines, "fid/out")[4:6] == ["-", "-"]


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
    first["figures"]["fid[glyph-cnn]/class/:smile:"] = figure(0, 0)
    second["figures"]["kid/out"] = figure("NaN", 0.125)
    status, lines = compared(first, second)
    assert status == 0
    name = "fid[glyph-cnn]/class/:smile:"
    assert cells(lines, "smile") == [name, "0", "-", "-", "-", "-", "0", "-"]
    assert cells(lines, "kid/out") == ["kid/out", "-", "nan", "-", "-", "-", "0.125", "-"]
    assert f"  figures: only the first has {name}; only the second has kid/out: not compared" in lines


def test_a_narrow_terminal_cuts_no_number(compared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    name = "fid[some-extractor]/class/" + "x" * 90
    first = plain()
    first["figures"] = {name: first["figures"]["fid/out"]}
    _, lines = compared(first, first)
    assert cells(lines, name) == [name, "4.5 ± 0.12", "4.5 ± 0.12", "0", "[0, 0]", "no difference", "0.5", "0.25"]


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
