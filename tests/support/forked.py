"""Jobs that may be killed: each in a process of its own, forked from a driver that has imported everything.

A driver is ``python -m tests.NAME`` that ends in `serve`; it has computed nothing, so that a fork of it can.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Driver = Callable[[Job], dict[str, Any]]
"""What to call with a job; it answers how that ended."""
REPOSITORY = Path(__file__).parents[2]


def in_fork(work: Callable[[], int], errors: Path) -> dict[str, Any]:
    """Do `work` in a fork, its output into the file `errors`: its "code", the "signal" that ended it, and "stderr"."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return {
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "stderr": errors.read_text(),
        }
    code = 1
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(do: Driver) -> None:
    """Answer jobs, a line of JSON each, until there are no more."""
    for line in sys.stdin:
        print(json.dumps(do(json.loads(line))), flush=True)


@contextmanager
def driver(module: str, environment: Mapping[str, str] | None = None) -> Iterator[Driver]:
    """Run the driver of this name, with more variables in its environment."""
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin, process.stdout

        def do(job: Job) -> dict[str, Any]:
            to.write(json.dumps(job) + "\n")
            to.flush()
            ended: dict[str, Any] = json.loads(answers.readline())
            return ended

        yield do
