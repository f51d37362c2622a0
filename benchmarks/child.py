"""Processes of their own: what one side takes in time and memory, without the other side in the same process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


def timed(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Wall seconds and peak memory in MB of a child process, which must succeed.

    A child's peak begins at the size that its parent had when it was forked: keep the parent small.
    """
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(environment or os.environ))
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - begin, _megabytes(usage.ru_maxrss)


def peak_memory() -> float:
    """MB that this process has held at most."""
    return _megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def child(module: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m benchmarks.MODULE ARGUMENTS`, started, with pipes to talk to it, and further variables."""
    path = os.pathsep.join(entry for entry in (str(_ROOT), *sys.path) if entry)
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **_QUIET, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(module: str, *arguments: Any) -> dict[str, Any]:
    """Run `python -m benchmarks.MODULE ARGUMENTS`; the JSON object in the last line that it prints."""
    process = child(module, *arguments)
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def _megabytes(maxrss: int) -> float:
    return maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6  # bytes there, KiB elsewhere
