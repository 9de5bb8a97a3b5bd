"""docs/scaling.md: its commands are ones that the program takes, and its tables are those of the scripts."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_vfs.cli import main
from tests.processes import run_together
from tests.ranks import meeting

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
FLAGS = sorted(set(re.findall(r"`(--(?:data|model|trainer)\.[^`]*)`", PAGE)))


def parse(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    """The configuration that `fit` makes of these arguments."""
    with pytest.raises(SystemExit) as end:
        main(["fit", *args, "--print_config"])
    shown = capsys.readouterr()
    assert end.value.code == 0, shown.err
    return yaml.safe_load(shown.out)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "configs/" in line and "python" not in line])
def test_a_command_is_taken(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the files that start `fit` on many nodes, what they are given."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word == "fit" or word.startswith("configs/scale/"))
    assert words[start] == "fit" or Path(words[start]).is_file()
    config = parse(words[start + 1 :], capsys)
    assert config["data"]["init_args"]["root"] == "path/to/images"


def test_the_flags_that_it_names_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert {"--model.checkpoint_activations true", "--model.skip_nonfinite true"} <= set(FLAGS)
    with_values = [word for flags in FLAGS for word in flags.split() if " " in flags]
    config = parse(["--config=configs/folders.yaml", "--data.root=images", *with_values], capsys)
    assert config["model"]["checkpoint_activations"] and config["model"]["skip_nonfinite"]
    for flag in FLAGS:
        place, *names = flag.split()[0].removeprefix("--").split(".")
        part = config[place]["init_args"] if place == "data" else config[place]
        for name in names:
            assert name in part, flag
            part = part[name]


def test_a_step_between_logged_ones_reads_no_tensor(tmp_path: Path) -> None:
    """By the script that counts them, with the callbacks of the command line on two ranks."""
    path = ROOT / "scripts" / "step_counts.py"
    spec = importlib.util.spec_from_file_location("step_counts", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    ranks = run_together([[path, f"--rank={rank}", f"--folder={tmp_path}"] for rank in range(2)], meeting(2))
    assert [done.returncode for done in ranks] == [0, 0], ranks[0].stderr
    reads = {int(step): count for step, count in json.loads((tmp_path / "reads.json").read_text()).items()}
    assert len(reads) == script.STEPS
    assert [step for step, count in reads.items() if count] == [script.EVERY, 2 * script.EVERY]


@pytest.mark.slow
def test_the_tables_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "training_cost.py", "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/training_cost.py"
