"""Handle hostile inputs in processes of their own: ``python -m tests.fuzz.worker`` reads jobs, a line of JSON each.

A job: "samples" and "place" (folders), "target", "seeds" (first and last + 1), "fault" (the name of one to plant, or
null), "limit" (seconds an input may take). Each job is a fork of this process, which has imported everything and
computed nothing; a fork that hangs or dies is a finding, and another goes on behind that input. The answer: how many
inputs were "done" and how many "refused", and "findings", a list of [seed, text].
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz import guards
from tests.fuzz.faults import FAULTS
from tests.fuzz.targets import TARGETS, clean


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job."""
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
    held, ended = b"", False
    while not ended:
        ready, _, _ = select.select([reader], [], [], job["limit"])
        piece = os.read(reader, 1 << 16) if ready else b""
        if not ready:
            os.kill(child, signal.SIGKILL)
            findings.append((seed, f"hang: more than {job['limit']} seconds"))
            seed += 1
        ended = not piece
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            ending = json.loads(line)
            counts[ending["outcome"]] += 1
            findings += [(seed, one) for one in ending["findings"]]
            seed += 1
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        findings.append((seed, f"raw exception: the process died of signal {os.WTERMSIG(status)}"))
        seed += 1
    elif os.WIFEXITED(status) and os.WEXITSTATUS(status):
        findings.append((seed, f"the suite itself failed, or the process ended with code {os.WEXITSTATUS(status)}"))
        seed += 1
    return seed


def _child(job: dict[str, Any], first: int, last: int, writer: int) -> None:
    code = 3
    with contextlib.suppress(SystemExit):
        try:
            _handle(job, first, last, writer)
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


def _handle(job: dict[str, Any], first: int, last: int, writer: int) -> None:
    place, samples = Path(job["place"]), Path(job["samples"])
    os.environ.update(TMPDIR=str(place / "tmp"), HOME=str(place / "tmp"), MLXBERT_CACHE=str(place / "tmp" / "cache"))
    guard = guards.Guard()
    guard.install()
    guards.limit_memory()
    planted = FAULTS[job["fault"]].plant() if job["fault"] else contextlib.nullcontext()
    for seed in range(first, last):
        clean(place)
        use = TARGETS[job["target"]](samples, place, random.Random(f"{job['target']} {seed}"))
        with planted:
            ending = guards.observed(use, guard, place)
        os.write(writer, json.dumps(vars(ending)).encode() + b"\n")


def import_everything() -> None:
    """Import what an input may need, so that no fork does it again."""
    import huggingface_hub.repocard
    import sklearn.model_selection  # noqa: F401

    from converter.mappings import bert  # noqa: F401

    huggingface_hub.repocard.metadata_load, huggingface_hub.HfApi  # noqa: B018 (loaded when they are asked for)


if __name__ == "__main__":
    import_everything()
    for given in sys.stdin:
        print(json.dumps(work(json.loads(given))), flush=True)
