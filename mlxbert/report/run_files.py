"""A run's files, read and checked for a report: run.json, metrics.jsonl, scores.json, oof.csv, worst_rows.csv."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heads.head_registry import COMPETITION_TYPES
from mlxbert.factory.frames import shown
from mlxbert.files.reading import read_text
from mlxbert.home import expand_home
from mlxbert.report.csv_table import CsvTable, read_csv
from mlxbert.report.event_log import History, MemberScores, read_events
from mlxbert.report.json_values import JsonValues
from mlxbert.report.report_error import ReportError

FORMAT, VERSION = "mlxbert-run", 1
FIX = "fix: restore the file from a copy of the run, or train it again"


@dataclass(frozen=True)
class Scores:
    """scores.json.

    Attributes:
        members: each on its own held-out rows.
        spread: metric -> mean, std, low and high over the members.
        pooled: of all out-of-fold rows together.
        hold_out: of the rows that no fold had, and `hold_out_rows` how many; None without them.
        seconds: that the run took.
    """

    members: list[MemberScores]
    spread: dict[str, dict[str, float]]
    pooled: dict[str, float]
    hold_out: dict[str, float] | None
    hold_out_rows: int | None
    seconds: float


@dataclass(frozen=True)
class RunFiles:
    """Everything that a report is made of.

    Attributes:
        path: of the run.
        info: run.json as it is.
        task: of the six competition types.
        target: the target's columns.
        classes: the labels as text, lowest or negative first; () where there are none.
        metric: the run's own; `metrics`: all, with it.
        members: the names of all members, trained or not.
        histories: of the members that have begun.
        scores: None while the run is unfinished.
        oof: out-of-fold predictions, and `worst` its worst rows; None where there is no such file.
        notes: what the reader should know of the files.
    """

    path: Path
    info: dict[str, Any]
    task: str
    target: tuple[str, ...]
    classes: tuple[str, ...]
    metric: str
    metrics: tuple[str, ...]
    members: tuple[str, ...]
    histories: list[History]
    scores: Scores | None
    oof: CsvTable | None
    worst: CsvTable | None
    notes: tuple[str, ...]

    @property
    def finished(self) -> list[MemberScores]:
        """The members that are trained, in order."""
        if self.scores is not None:
            return self.scores.members
        return [history.finished for history in self.histories if history.finished is not None]


def read_run(run_directory: str | Path) -> RunFiles:
    """Read the run in a directory, finished or not.

    Raises:
        ReportError: no such directory, not a run, a file of it that is damaged; the line is named where there is one.
    """
    path = expand_home(run_directory)
    if not path.is_dir():
        what = "a file, not a directory" if path.exists() else "no such directory"
        raise ReportError(f"{path}: {what}; fix: give the directory of a run, as `mlxbert train … -o RUN` made it")
    info = _json(path / "run.json")
    if info is None or info.values.get("format") != FORMAT:
        raise ReportError(
            f"{path}: not a run (no run.json of one); fix: give the directory that `mlxbert train` wrote"
        )
    if info.values.get("version") != VERSION:
        raise ReportError(
            f"{path / 'run.json'}: version {info.values.get('version')!r}, and this mlxbert reads {VERSION}; "
            "fix: upgrade mlxbert"
        )
    task = info.part("task")
    kind = task.text("task")
    if kind not in COMPETITION_TYPES:
        raise ReportError(f"{path / 'run.json'}: task {kind!r} is none of {', '.join(COMPETITION_TYPES)}; {FIX}")
    scores = _json(path / "scores.json")
    histories, notes = read_events(path / "metrics.jsonl", unfinished=scores is None)
    oof, worst = read_csv(path / "oof.csv"), read_csv(path / "worst_rows.csv")
    if scores is not None:
        notes += [
            f"{name} is not there." for name, table in (("oof.csv", oof), ("worst_rows.csv", worst)) if not table
        ]
    metric, metrics = info.text("metric"), info.texts("metrics")
    classes = task.values.get("classes")
    return RunFiles(
        path=path,
        info=info.values,
        task=kind,
        target=tuple(task.texts("target")),
        classes=tuple(shown(label) for label in classes) if isinstance(classes, list) else (),
        metric=metric,
        metrics=tuple(dict.fromkeys([metric, *metrics])),
        members=tuple(info.texts("members")),
        histories=histories,
        scores=None if scores is None else _scores(scores),
        oof=oof,
        worst=worst,
        notes=tuple(notes),
    )


def _json(path: Path) -> JsonValues | None:
    text = read_text(path, ReportError)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: not valid JSON ({error}); {FIX}") from None
    if not isinstance(value, dict):
        raise ReportError(f"{path}: a {type(value).__name__}, not a JSON object; {FIX}")
    return JsonValues(value, str(path), FIX)


def _scores(scores: JsonValues) -> Scores:
    hold_out = None if scores.values.get("hold_out") is None else scores.part("hold_out")
    spread = scores.part("spread")
    return Scores(
        members=[_member(one) for one in scores.parts("members")],
        spread={name: spread.metrics(name) for name in spread.values},
        pooled=scores.metrics("pooled"),
        hold_out=None if hold_out is None else hold_out.metrics("metrics"),
        hold_out_rows=None if hold_out is None else hold_out.whole("rows"),
        seconds=scores.number("seconds"),
    )


def _member(values: JsonValues) -> MemberScores:
    return MemberScores(
        values.text("member"),
        values.whole("rows"),
        values.whole("step"),
        values.number("epoch"),
        values.metrics("metrics"),
    )
