"""Runs that are killed, and go on: ``python -m tests.support.resume_driver`` reads jobs of JSON, and answers so.

A job is a command line of `mlxbert`, and the point at which its process kills itself. Points are contacts with
the file system (`tests.support.interruption`), batches, evaluations and files of the end, each named by the phase that
the run is in. Every job is a process of its own, forked from this one. This one has imported everything
and computed nothing.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Imported here, so that a fork costs nothing.
import pandas
import pandas.io.formats.csvs  # noqa: F401
import scipy.optimize  # noqa: F401
import sklearn.model_selection  # noqa: F401

import mlxbert.runs.finish as finish
import mlxbert.runs.members as members
import mlxbert.runs.session as session
import mlxbert.training.trainer as trainer
from mlxbert.cli import main as command
from mlxbert.training.held_out import HeldOut
from mlxbert.training.step import TrainStep
from mlxbert.with_head import BertWithHead
from tests.support.forked import Job, in_fork, serve
from tests.support.interruption import Points, counted_points


class Phases(Points):
    """Points named by the innermost phase that is under way: "save: before write"."""

    def __init__(self, stop: Callable[[], object] | None = None, at: int | None = None) -> None:
        super().__init__(stop, at)
        self.phases = ["start"]

    def pass_by(self, name: str) -> None:
        super().pass_by(f"{self.phases[-1]}: {name}")

    def during(self, owner: Any, function: str, phase: str) -> None:
        """Name what happens inside `owner.function`, and count its beginning and its end."""
        inner = getattr(owner, function)

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.phases.append(phase)
            self.pass_by("begins")
            try:
                return inner(*args, **kwargs)
            finally:
                self.pass_by("ends")
                self.phases.pop()

        setattr(owner, function, counted)

    def watch(self) -> None:
        """Count inside this process, which ends soon."""
        self.during(trainer, "write_arrays", "save")
        self.during(TrainStep, "accumulate", "batch")
        self.during(TrainStep, "update", "update")
        self.during(HeldOut, "logits", "evaluation")
        self.during(HeldOut, "predictions", "evaluation")
        self.during(BertWithHead, "save", "between folds")
        self.during(members, "_save_logits", "between folds")
        self.during(members.shutil, "rmtree", "between folds")
        self.during(session, "finish", "finish")
        self.during(finish, "write_out_of_fold", "finish")
        self.during(finish, "write_submission", "finish")


def run(job: Job) -> dict[str, Any]:
    """Do one job; how it ended, its standard error, and the points that it passed.

    A job: "arguments" of the command; "files", a prefix for what it leaves; "at": at which point it sends itself
    "signals", by number.
    """
    report = Path(f"{job['files']}.json")

    def work() -> int:
        def stop() -> None:
            report.write_text(json.dumps(points.names))
            for number in job["signals"]:
                os.kill(os.getpid(), number)

        # Where the tests run in the background of a script, SIGINT is ignored; here it is a person's Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        points = Phases(stop, job.get("at"))
        points.watch()
        try:
            with counted_points(points):
                code = command(job["arguments"], standalone_mode=False) or 0
        except SystemExit as exit:  # an error, or Ctrl-C, that was answered
            code = exit.code
        report.write_text(json.dumps(points.names))
        return int(code or 0)

    ended = in_fork(work, Path(f"{job['files']}.stderr"))
    return {**ended, "names": json.loads(report.read_text()) if report.is_file() else []}


if __name__ == "__main__":
    serve(run)
