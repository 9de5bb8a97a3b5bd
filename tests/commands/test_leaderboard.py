"""lightning-vfs leaderboard: pages of many records, honest and hostile ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lightning_vfs.cli import main
from lightning_vfs.evaluation.record import EvaluationRecord
from tests.evaluation.test_ranking import values_of
from tests.evaluation.test_record import changed, plain

EVIL = "<script>alert(1)</script>|[x](http://evil.example) ![y](z) `a` **b** _c_ # d\n## e\r\x1b[31m&amp;\"'"


def write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    EvaluationRecord.from_dict(values).write(path)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three comparable runs of which one copies, one by another protocol, and files that are no records."""
    monkeypatch.chdir(tmp_path)
    for name, values in {
        "a": values_of(), "b": values_of(0.2), "copier": values_of(0.3, "copies its support"),
        "other": changed("sampling.steps", 250, values_of()),
    }.items():  # fmt: skip
        write(tmp_path / "runs" / name / "version_0" / "checkpoints" / "fid.json", values)
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "fid.json").write_text("{}")
    return tmp_path / "runs"


def table_of(page: str) -> list[list[str]]:
    """Cells of the first table in Markdown."""
    rows = page[page.index("| rank |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


@pytest.mark.parametrize("place", ["runs", "runs/**/fid.json", "runs/*/*/checkpoints/fid.json"])
def test_records_are_found_in_folders_and_by_patterns(runs, place: str, capsys) -> None:
    assert main(["leaderboard", place, "--out", "out/table.md"]) == 0
    said = capsys.readouterr()
    assert said.out == "out/table.md: 4 evaluations in 2 groups that are not comparable\n"
    assert ("runs/fid.json: there is no `schema` in it" in said.err) == ("checkpoints" not in place)
    page = Path("out/table.md").read_text()
    names = [row[1] for row in table_of(page)[2:]]
    assert names == [
        "b/version_0",
        "a/version_0",
        "(3) copier/version_0", "real images", "copier", "mean of the support", "chance",
    ]  # fmt: skip
    assert [row[0] for row in table_of(page)[2:]] == ["1", "2", "-", "-", "-", "-", "-"]
    warning = "- **copier/version_0, out: copies its support: its fid, precision and accuracy say nothing**"
    assert page.index(warning) < page.index("| rank |")
    assert "- steps: 250 against 50" in page or "- steps: 50 against 250" in page
    assert "![novelty against accuracy](table.svg)" in page and Path("out/table.svg").is_file()
    assert Path("out/table-2.svg").is_file() and "One training run each" in page


def test_files_are_given_by_the_shell_and_each_counts_once(runs, capsys) -> None:
    files = sorted(map(str, runs.rglob("checkpoints/fid.json")))
    assert main(["leaderboard", *files, "runs", files[0], "--out", "table.html"]) == 0
    assert "4 evaluations" in capsys.readouterr().out


def test_seeds_are_averaged_by_run(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i, shift in enumerate((0.0, 0.06)):
        write(tmp_path / f"seed{i}" / "fid.json", changed("model.run_sha256", str(i) * 64, values_of(shift)))
    assert main(["leaderboard", ".", "--by", "run"]) == 0
    page = capsys.readouterr().out
    (row,) = [row for row in table_of(page) if "training runs" in row[1]]
    assert row[:2] == ["1", "seed0 (2 training runs)"] and row[2].startswith("0.63 (")
    assert main(["leaderboard", "."]) == 0
    assert [row[1] for row in table_of(capsys.readouterr().out)[2:4]] == ["seed1", "seed0"]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def hostile(name: str = EVIL) -> dict[str, Any]:
    values = values_of(0.1, verdict=EVIL)
    for path in ("data.dataset", "sampling.sampler", "features.extractor", "model.checkpoint"):
        values = changed(path, EVIL, values)
    values["notes"] = [EVIL]
    values["figures"][f"fid[{EVIL}]/out"] = values["figures"]["fid[x]/out"]
    values["figures"][EVIL] = values["figures"]["fid[x]/out"]
    values["figures"]["kid[<b>]/out"] = values["figures"]["fid[x]/out"] | {
        "value": "NaN",
        "floor": 1e308,
        "copier": 1e-320,
    }
    return values


def test_hostile_records_are_text_and_nothing_else(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a|b<i>[c](d)`e`\n# f\udce9"
    write(folder / "fid.json", hostile())
    write(tmp_path / "good" / "fid.json", values_of())
    assert main(["leaderboard", ".", "--out", "table.html"]) == 0
    assert main(["leaderboard", ".", "--out", "table.md"]) == 0
    page = Path("table.html").read_text()
    found = Tags()
    found.feed(page)
    assert not {"script", "img", "a", "i", "b"} & set(found.tags) - {"b"} and "href" not in found.attributes
    assert not any(name.startswith("on") for name in found.attributes)
    assert "<b>" not in page.replace('<p class="verdict"><b>', "")
    markdown = Path("table.md").read_text()
    assert "<script" not in markdown and "\x1b" not in markdown and "http://" not in markdown
    assert set(re.findall(r"(?<!\\)\]\((.*?)\)", markdown)) == {"table.svg", "table-2.svg"}
    assert [line for line in markdown.splitlines() if line.startswith("#")] == [
        "# Leaderboard", "## Group 1", "### out", "## Group 2", "### out",
    ]  # fmt: skip
    widths = [len(re.split(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")]
    titles = [i for i, line in enumerate(markdown.splitlines()) if line.startswith("| rank")]
    assert len(titles) == 2 and len(set(widths)) == 2
    for picture in tmp_path.glob("*.svg"):
        assert "<script" not in picture.read_text() and "\n# f" not in picture.read_text()


def test_damaged_and_changed_records_are_named_and_passed_over(runs, capsys) -> None:
    bad = {
        "empty": b"", "list": b"[]", "text": b"\xff", "deep": b"[" * 100_000, "nan": b'{"schema": NaN}',
        "missing": json.dumps({"schema": 5}).encode(),
    }  # fmt: skip
    for name, content in bad.items():
        (runs / name).mkdir(exist_ok=True)
        (runs / name / "fid.json").write_bytes(content)
    path = runs / "a" / "version_0" / "checkpoints" / "fid.json"
    values = json.loads(path.read_text())
    values["figures"]["novel_accuracy[x]/out"]["value"] = 0.99
    path.write_text(json.dumps(values))
    assert main(["leaderboard", "runs", "nowhere/*.json", "--out", "table.md"]) == 0
    said = capsys.readouterr().err
    assert len(said.splitlines()) == len(bad) + 3  # and runs/fid.json, and the pattern
    assert all(f"{name}/fid.json" in said for name in bad) and "nowhere/*.json: there is no record" in said
    assert "a/version_0/checkpoints/fid.json was changed after it was written" in said
    page = Path("table.md").read_text()
    assert "a/version_0" not in [row[1] for row in table_of(page)] and "## Passed over" in page


def test_records_of_earlier_versions_are_ranked(runs, capsys) -> None:
    old = plain() | {"schema": 4}
    for name in ("run_sha256", "recipe_sha256"):
        del old["model"][name]
    (runs / "fid.json").write_text(json.dumps(old))
    assert main(["leaderboard", "runs/fid.json"]) == 0
    assert table_of(capsys.readouterr().out)[2][:3] == ["-", "(1) runs", "4.5 (1.323 to 7.677)"]


def test_without_a_record_there_is_nothing_to_rank(runs, capsys) -> None:
    for places in (["runs/empty"], ["runs/fid.json"], ["nothing"]):
        assert main(["leaderboard", *places, "--out", "table.md"]) == 1
        assert "There is no record of an evaluation to rank: " in capsys.readouterr().err
    assert not Path("table.md").exists()
    assert main(["leaderboard"]) == 2
    assert "lightning-vfs leaderboard: " in capsys.readouterr().err


def test_other_files_are_not_overwritten(runs, capsys) -> None:
    Path("README.md").write_text("mine")
    assert main(["leaderboard", "runs", "--out", "README.md"]) == 1
    assert "README.md is there already, and no leaderboard" in capsys.readouterr().err
    assert Path("README.md").read_text() == "mine"
    Path("table.svg").write_text("mine")
    assert main(["leaderboard", "runs", "--out", "table.md"]) == 1
    assert Path("table.svg").read_text() == "mine" and not Path("table.md").exists()
    for wrong in ("table.txt", "table", "s3://bucket/table.md"):
        assert main(["leaderboard", "runs", "--out", wrong]) == 1
    os.unlink("table.svg")
    for _ in range(2):
        assert main(["leaderboard", "runs", "--out", "table.md"]) == 0
        assert main(["leaderboard", "runs", "--out", "table.html"]) == 0


def test_torch_is_not_imported(runs) -> None:
    code = (
        "import sys; from lightning_vfs.cli import main; main(['leaderboard', 'runs', '--out', 'table.html']); "
        "print(*sorted({'torch', 'lightning', 'matplotlib', 'jsonargparse'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[1:] == [""]
