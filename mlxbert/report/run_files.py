"""A run's files, read and checked for a report: run.json, metrics.jsonl, scores.json, oof.csv, worst_rows.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxbert.factory.frames import shown
from mlxbert.home import expand_home
from mlxbert.report.csv_table import CsvTable, read_csv
from mlxbert.report.event_log import History, read_histories
from mlxbert.runs.record import RunRecord, Scores, read_record, read_scores


@dataclass(frozen=True)
class Finished:
    """A trained member: which epoch's weights it keeps, and how they score on its held-out rows (None: not known)."""

    member: str
    rows: int | None
    epoch: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ReportedRun:
    """Everything that a report is made of.

    Attributes:
        path: of the run.
        record: run.json.
        histories: of the members that have begun.
        scores: None while the run is unfinished.
        oof: out-of-fold predictions, and `worst` its worst rows; None where there is no such file.
        notes: what the reader should know of the files.
    """

    path: Path
    record: RunRecord
    histories: list[History]
    scores: Scores | None
    oof: CsvTable | None
    worst: CsvTable | None
    notes: tuple[str, ...]

    @property
    def task(self) -> str:
        """The competition type."""
        return self.record.task.task

    @property
    def target(self) -> tuple[str, ...]:
        """The target's columns."""
        return self.record.task.target

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels as text, lowest or negative first; () where there are none."""
        return tuple(shown(label) for label in self.record.task.classes or ())

    @property
    def metric(self) -> str:
        """The run's own metric."""
        return self.record.metric

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics, the run's own first."""
        return tuple(dict.fromkeys([self.record.metric, *self.record.metrics]))

    @property
    def finished(self) -> list[Finished]:
        """The members that are trained, in order."""
        if self.scores is not None:
            return [Finished(one.member, one.rows, one.epoch, one.metrics) for one in self.scores.members]
        events = [history.finished for history in self.histories if history.finished is not None]
        return [Finished(one.member, None, one.epoch, one.metrics) for one in events]


def read_run(run_directory: str | Path) -> ReportedRun:
    """Read the run in a directory, finished or not.

    Raises:
        RunError: no such directory, not a run, or damaged JSON of it; the field or the line is named.
        ReportError: a damaged table of it; the line is named.
    """
    path = expand_home(run_directory)
    record = read_record(path)
    scores = read_scores(path)
    histories, notes = read_histories(path / "metrics.jsonl")
    oof, worst = read_csv(path / "oof.csv"), read_csv(path / "worst_rows.csv")
    if scores is not None:
        notes += [
            f"{name} is not there." for name, table in (("oof.csv", oof), ("worst_rows.csv", worst)) if not table
        ]
    return ReportedRun(path, record, histories, scores, oof, worst, tuple(notes))
