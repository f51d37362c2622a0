"""Commands of `mlxbert` in real processes, on two threads unless they are told otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT = 400.0


@contextmanager
def started(*arguments: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Start ``python -m mlxbert …``; at the end, it and the processes that it has started are dead."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxbert", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a script, SIGINT is ignored; here it is a person's Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # type: ignore[arg-type, return-value]
    )
    children: set[int] = set()
    try:
        yield process
    finally:
        if process.poll() is None:
            children |= set(children_of(process.pid))
            process.kill()
        process.communicate()
        for child in children:
            end(child)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process; return its exit code, standard output and standard error."""
    out, error = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, error


def ran(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    """Run a command to its end; return exit code, standard output and standard error."""
    with started(*arguments, cwd=cwd) as process:
        return ended(process)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something is so; fail if it takes too long, or if the process ends before."""
    limit = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < limit, "it took too long"
        assert process is None or process.poll() is None or condition(), process and process.communicate()
        time.sleep(0.005)


def children_of(parent: int) -> list[int]:
    """Return the processes that a process has started and that live."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return [int(pid) for pid, owner, state in rows if int(owner) == parent and not state.startswith("Z")]


def lives(pid: int) -> bool:
    """Return whether a process is there, and no zombie."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(listed.stdout.strip()) and not listed.stdout.strip().startswith("Z")


def end(pid: int) -> None:
    """Kill a process if it is there."""
    if lives(pid):
        os.kill(pid, signal.SIGKILL)
