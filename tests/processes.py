"""Python processes that start at once: forked from one that has imported torch, Lightning and this package.

That one is started by the first test that needs it, serves those of all workers, and ends with the last of these.

Apart from what is imported they are as `python <command>` would start them: with their own session, environment, folder
and output, they end by themselves with their own status. Neighbours come from two parents, whose strings hash
differently, as those of two ranks do. What this package must not import before it is used, none of them has imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

REPOSITORY = Path(__file__).parents[1]
LIMIT = 600
"""Seconds after which a process is killed."""

_parents: dict[int, TextIO] = {}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One process at a time."""
    folder = os.open(REPOSITORY / "tests", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _parent(number: int) -> TextIO:
    """Connection to a parent; it serves us until we close it, at our end at the latest."""
    if number not in _parents:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        path = f"{tempfile.gettempdir()}/lightning_vfs-{run[:8]}-{number}"
        connection = socket.socket(socket.AF_UNIX)
        with _alone():
            try:
                connection.connect(path)
            except OSError:
                _start_parent(path, connection)
        _parents[number] = connection.makefile("rw")
        connection.close()  # the file keeps it open
    return _parents[number]


def _start_parent(path: str, connection: socket.socket) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        connection.connect(path)
        descriptor = listening.fileno()
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.processes", str(descriptor), path], cwd=REPOSITORY, pass_fds=[descriptor],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    parent.returncode = 0  # it may live longer than this process, which does not wait for it


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
            print(json.dumps(requests[number::2]), file=parent, flush=True)
        for number, parent in enumerate(parents):
            answer = parent.readline()
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


def _serve(listening: socket.socket, path: str) -> dict[str, Any] | None:
    """Fork a process for every connection, until all are closed; in those that are forked for a request, that."""
    while True:
        if select.select([listening], [], [], 0.1)[0]:
            connection, _ = listening.accept()
            if not os.fork():
                listening.close()
                return _answer(connection.makefile("rw"))
            connection.close()
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            with _alone():
                if not select.select([listening], [], [], 0)[0]:
                    os.unlink(path)
                    return None


def _answer(connection: TextIO) -> dict[str, Any] | None:
    """Fork a process for every request and answer with how they ended; in each of these, the request."""
    while line := connection.readline():
        deadline = time.monotonic() + LIMIT
        children = []
        for request in json.loads(line):
            child = os.fork()
            if not child:
                return request
            children.append(child)
        codes = [_end_of(child, deadline) for child in children]
        print(json.dumps(codes), file=connection, flush=True)
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

    if (request := _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])) is not None:
        _become(**request)
