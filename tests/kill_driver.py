"""Conversions that are killed at one of their points: ``python -m tests.kill_driver`` reads jobs, a line of JSON each.

A job is "src", "out", "overwrite" and "at", the point to be killed at; without that (null) it runs to its end. Every
job is a process of its own, forked from this one, which has imported everything and computed nothing. The answer,
a line of JSON too: the "signal" that ended it or null, its "code", its "stderr", and the "names" of the points that
it passed, which it can tell only at its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

# Imported here, so that a fork costs nothing.
import huggingface_hub.repocard
import jinja2  # noqa: F401

import converter.mappings.bert  # noqa: F401
from converter.convert import convert
from tests.interruption import Points, counted_points


def run(job: dict[str, Any], place: Path) -> dict[str, Any]:
    """Do one job in a process of its own; how it ended. `place` is a folder for what it tells."""
    names, errors = place / "names.json", place / "stderr"
    names.write_text("null")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return {
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "stderr": errors.read_text(),
            "names": json.loads(names.read_text()),
        }
    code = 1
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    points = Points(lambda: os.kill(os.getpid(), signal.SIGKILL), job["at"])
    try:
        with counted_points(points):
            convert(job["src"], job["out"], verify=False, overwrite=job["overwrite"])
        names.write_text(json.dumps(points.names))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    huggingface_hub.repocard.metadata_load  # noqa: B018 (the package imports its parts when they are asked for)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line), Path(folder))), flush=True)
