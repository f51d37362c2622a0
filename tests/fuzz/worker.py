"""Handle hostile inputs in processes of their own: ``python -m tests.fuzz.worker`` reads jobs, a line of JSON each.

A job: "samples" (their folder), "target", "seeds" (first and last + 1), "fault" (the name of one to plant, or
null), "limit" (seconds an input may take). Each job is a fork of this process, which has imported everything and
computed nothing; a fork that hangs or dies is a finding, and another goes on behind that input. The answer: how many
inputs were "done" and how many "refused", and "findings", a list of [seed, text].
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz import guards
from tests.fuzz.faults import FAULTS
from tests.fuzz.targets import TARGETS, clean

# In memory where that can be had: hundreds of conversions that sync their files would wait for the disk alone.
_MEMORY = Path("/dev/shm")


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as folder:
        return _work({**job, "place": str(Path(folder) / "place")})


def _work(job: dict[str, Any]) -> dict[str, Any]:
    seed, last = job["seeds"]
    counts = {"done": 0, "refused": 0}
    findings: list[tuple[int, str]] = []
    while seed < last:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(job, seed, last, writer)
        os.close(writer)
        seed = _watch(job, reader, child, seed, counts, findings)
    return {**counts, "findings": findings}


def _watch(
    job: dict[str, Any], reader: int, child: int, seed: int, counts: dict[str, int], findings: list[tuple[int, str]]
) -> int:
    """Take in what a fork tells of its inputs; returns the seed to go on with."""
    held, clock = b"", _Clock(child, job["limit"])
    while True:
        ready, _, _ = select.select([reader], [], [], 0.5)
        if not ready:
            if clock.is_over():
                os.kill(child, signal.SIGUSR1)
                time.sleep(1)
                os.kill(child, signal.SIGKILL)
                findings.append((seed, f"hang: {clock.reason}"))
                seed += 1
                break
            continue
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            ending = json.loads(line)
            counts[ending["outcome"]] += 1
            findings += [(seed, one) for one in ending["findings"]]
            seed += 1
            clock.start()
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        findings.append((seed, f"raw exception: the process died of signal {os.WTERMSIG(status)}"))
        seed += 1
    elif os.WIFEXITED(status) and os.WEXITSTATUS(status):
        findings.append((seed, f"the suite itself failed, or the process ended with code {os.WEXITSTATUS(status)}"))
        seed += 1
    return seed


class _Clock:
    """Says when an input takes too long, by the processor's time or by waiting without any: load is no fault."""

    def __init__(self, pid: int, limit: float) -> None:
        self._pid, self._limit = pid, limit
        self.reason = ""
        self.start()

    def start(self) -> None:
        """Begin with the next input."""
        self._first = self._last = self._processor_time()
        self._still_since = time.monotonic()

    def is_over(self) -> bool:
        """Whether the input took more than the limit, in time of the processor or without any."""
        now = self._processor_time()
        if now - self._last > 0.02:
            self._last, self._still_since = now, time.monotonic()
        if now - self._first > self._limit:
            self.reason = f"more than {self._limit} seconds of the processor"
        elif time.monotonic() - self._still_since > self._limit:
            self.reason = f"waits for more than {self._limit} seconds"
        return bool(self.reason)

    def _processor_time(self) -> float:
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # no such file system: all time counts as waiting
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(job: dict[str, Any], first: int, last: int, writer: int) -> None:
    code = 3
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    with contextlib.suppress(SystemExit):
        try:
            _handle(job, first, last, writer)
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


def _handle(job: dict[str, Any], first: int, last: int, writer: int) -> None:
    samples, place = Path(job["samples"]), Path(job["place"])
    os.environ.update(TMPDIR=str(place / "tmp"), HOME=str(place / "tmp"), MLXBERT_CACHE=str(place / "tmp" / "cache"))
    guard = guards.Guard()
    guard.install()
    guards.limit_memory()
    planted = FAULTS[job["fault"]].plant() if job["fault"] else contextlib.nullcontext()
    for seed in range(first, last):
        clean(place)
        with planted:
            use = TARGETS[job["target"]](samples, place, random.Random(f"{job['target']} {seed}"))
            ending = guards.observed(use, guard, place)
        os.write(writer, json.dumps(vars(ending)).encode() + b"\n")


# Imported before the first fork, so that no fork does it again.
_MODULES = (
    "click.testing", "huggingface_hub", "huggingface_hub.hf_api", "huggingface_hub.repocard", "jinja2",
    "matplotlib.font_manager", "pandas", "pyarrow.parquet", "scipy.optimize", "sklearn.model_selection",
    "converter.export.checkpoint", "converter.mappings.bert", "converter.publish.push", "converter.export.run",
    "mlxbert.encode.encoder", "mlxbert.report", "mlxbert.runs.blend",
)  # fmt: skip


if __name__ == "__main__":
    for module in _MODULES:
        importlib.import_module(module)
    for given in sys.stdin:
        print(json.dumps(work(json.loads(given))), flush=True)
