"""Conversions that are killed at one of their points: ``python -m tests.support.kill_driver`` reads jobs of JSON.

A job is "src", "out", "overwrite", "exchange" (false: the system cannot exchange directories) and "at", the point to
be killed at; without that (null) it runs to its end. Every
job is a process of its own, forked from this one, which has imported everything and computed nothing. The answer,
a line of JSON too: the "signal" that ended it or null, its "code", its "stderr", and the "names" of the points that
it passed, which it can tell only at its end.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# Imported here, so that a fork costs nothing.
import huggingface_hub.repocard
import jinja2  # noqa: F401

import converter.mappings.bert  # noqa: F401
from converter.convert import convert
from tests.support.forked import Job, in_fork, serve
from tests.support.interruption import Points, counted_points, no_exchange


def run(job: Job, place: Path) -> dict[str, Any]:
    """Do one job; how it ended. `place` is a folder for what it tells."""
    names = place / "names.json"
    names.write_text("null")

    def work() -> int:
        points = Points(lambda: os.kill(os.getpid(), signal.SIGKILL), job["at"])
        with nullcontext() if job["exchange"] else no_exchange(), counted_points(points):
            convert(job["src"], job["out"], verify=False, overwrite=job["overwrite"])
        names.write_text(json.dumps(points.names))
        return 0

    ended = in_fork(work, place / "stderr")
    return {**ended, "names": json.loads(names.read_text())}


if __name__ == "__main__":
    huggingface_hub.repocard.metadata_load  # noqa: B018 (the package imports its parts when they are asked for)
    with tempfile.TemporaryDirectory() as folder:
        serve(lambda job: run(job, Path(folder)))
