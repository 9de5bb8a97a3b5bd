"""Python processes that start at once: forked from one that has imported torch, Lightning and this package.

Apart from what is imported they are as `python <command>` would start them: with their own session, environment, folder
and output, they end by themselves with their own status. Neighbours come from two parents, whose strings hash
differently, as those of two ranks do. What this package must not import before it is used, none of them has imported.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
LIMIT = 600
"""Seconds after which a process is killed."""

_parents: dict[int, subprocess.Popen[str]] = {}


def _parent(number: int) -> subprocess.Popen[str]:
    if number not in _parents:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.processes"]
        _parents[number] = parent = subprocess.Popen(command, cwd=REPOSITORY, env=env, **pipes)
        atexit.register(parent.communicate)  # at the end of its input it ends
    return _parents[number]


def run_together(
    commands: Sequence[Sequence[object]], environments: Iterable[Mapping[str, str]]
) -> list[subprocess.CompletedProcess[str]]:
    """Run `python <command>` for each command at once, with this environment and what is added to it, to the end.

    A command is `-m <module> <argument>...` or `<script> <argument>...`.
    """
    with tempfile.TemporaryDirectory() as folder:
        requests = [
            {
                "command": list(map(str, command)), "environment": {**os.environ, **environment},
                "cwd": os.getcwd(), "output": f"{folder}/{number}",
            }
            for number, (command, environment) in enumerate(zip(commands, environments, strict=True))
        ]  # fmt: skip
        codes: list[int] = [0] * len(requests)
        parents = [_parent(number) for number in range(min(len(requests), 2))]
        for number, parent in enumerate(parents):
            print(json.dumps(requests[number::2]), file=parent.stdin, flush=True)
        for number, parent in enumerate(parents):
            assert parent.stdout is not None
            answer = parent.stdout.readline()
            assert answer, "The process that others are forked from has ended: see what it wrote to standard error."
            codes[number::2] = json.loads(answer)
        return [
            subprocess.CompletedProcess(
                request["command"], code, *(Path(f"{request['output']}.{name}").read_text() for name in ("out", "err"))
            )
            for request, code in zip(requests, codes, strict=True)
        ]


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <command>` to its end."""
    return run_together([command], [environment])[0]


def imported_by(folder: Path, code: str, modules: Sequence[str]) -> list[str]:
    """Those of the modules that the code imports, in a process that has imported torch, Lightning and this package."""
    script = folder / "script.py"
    script.write_text(f"import sys\n{code}\nprint(*[name for name in {list(modules)} if name in sys.modules])")
    done = run(script)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# -- the parent -------------------------------------------------------------------------------------------------------


def _serve() -> dict[str, Any] | None:
    """Fork a process for every request and answer with how they ended; in each of these, the request."""
    while line := sys.stdin.readline():
        deadline = time.monotonic() + LIMIT
        children = []
        for request in json.loads(line):
            child = os.fork()
            if not child:
                return request
            children.append(child)
        codes = [_end_of(child, deadline) for child in children]
        print(json.dumps(codes), flush=True)
    return None


def _end_of(child: int, deadline: float) -> int:
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def _become(command: list[str], environment: dict[str, str], cwd: str, output: str) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", "0"))  # which is read when it is imported
    for descriptor, path in enumerate((os.devnull, f"{output}.out", f"{output}.err")):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    sys.path.append(str(REPOSITORY))  # a script of the tests may import others of them
    if command[0] == "-m":
        sys.path[0], sys.argv = cwd, command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(command[0]).parent), command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    from lightning_utilities.core.rank_zero import rank_zero_only

    import lightning_vfs.callbacks
    import lightning_vfs.commands.lightning
    import lightning_vfs.interop  # noqa: F401

    if (request := _serve()) is not None:
        _become(**request)
