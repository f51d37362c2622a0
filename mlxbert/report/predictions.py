"""What a report cannot be made of.

The CSV files of a run as columns of text, with the line that each row begins on, so that an error can name it.

What each member of a run logged while it trained, in the order of its steps.

A run's files, read and checked for a report: run.json, metrics.jsonl, scores.json, oof.csv, worst_rows.csv.

oof.csv as arrays: what was true and what was predicted, of each kind of task.

Reliability: the probabilities against how often what they speak of is so.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from heads.metrics import ece
from mlxbert.data.frames import shown
from mlxbert.errors import MLXBertError
from mlxbert.files.reading import expand_home, read_text
from mlxbert.runs.files import escaped_formula, read_log, truth_columns
from mlxbert.runs.record import RunRecord, Scores, read_record, read_scores
from mlxbert.training.callbacks import EvaluationEvent, MemberEvent, StepEvent


class ReportError(MLXBertError):
    """A damaged table of a run, or an output that must not be written: one line with the place and the fix."""


T = TypeVar("T")

FIX = "fix: restore the file, or move it away for a report without it"


@dataclass(frozen=True)
class CsvTable:
    """A CSV file.

    Attributes:
        path: of the file, for messages.
        columns: the cells of each column, by its name, in the file's order.
        lines: (rows,) the line, from 1, that each row ends on.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def named(self, prefix: str) -> list[str]:
        """What follows `prefix` in the names of the columns that begin with it."""
        return [name.removeprefix(prefix) for name in self.columns if name.startswith(prefix)]

    def cells(self, name: str) -> list[str]:
        """A column. Raises `ReportError` when there is none of that name."""
        if name not in self.columns:
            raise ReportError(f"{self.path}: no column {name!r}; {FIX}")
        return self.columns[name]

    def numbers(self, name: str, *, missing: bool = False) -> np.ndarray:
        """A column as float64 (rows,); an empty cell is NaN where `missing` allows it.

        Raises:
            ReportError: no such column, or a cell that is no finite number; its line is named.
        """
        cells = self.cells(name)

        def parse(cell: str) -> float:
            if not cell.strip() and missing:
                return float("nan")
            value = float(cell)
            if not np.isfinite(value):
                raise ValueError(cell)
            return value

        return np.array(self.parsed(name, cells, parse, "a number"), np.float64)

    def parsed(self, name: str, cells: list[str], parse: Callable[[str], T], expected: str) -> list[T]:
        """Every cell through `parse`, which raises ValueError or KeyError for one that is not `expected`."""
        values = []
        for cell, line in zip(cells, self.lines, strict=True):
            try:
                values.append(parse(cell))
            except (ValueError, KeyError):
                shown = cell if len(cell) <= 40 else f"{cell[:40]}…"
                raise ReportError(f"{self.path}: line {line}: {name} is {shown!r}, not {expected}; {FIX}") from None
        return values


def read_csv(path: Path) -> CsvTable | None:
    """The table in a file; None when there is no such file.

    Raises:
        ReportError: not UTF-8, no header, a name that comes twice, broken quotes, a row of another length.
    """
    text = read_text(path, ReportError)
    if text is None:
        return None
    limit = csv.field_size_limit(sys.maxsize)  # a text may be longer than the 131072 characters that csv allows
    try:
        return _parse(path, text)
    finally:
        csv.field_size_limit(limit)


def _parse(path: Path, text: str) -> CsvTable:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        header = next(reader, None)
        if not header:
            raise ReportError(f"{path}: line 1: no header; {FIX}")
        for row in reader:
            if not row:
                continue  # a blank line
            if len(row) != len(header):
                raise ReportError(
                    f"{path}: line {reader.line_num}: {len(row)} cells under {len(header)} column names; {FIX}"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ReportError(f"{path}: line {reader.line_num}: {error}; {FIX}") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ReportError(f"{path}: line 1: column {twice[0]!r} comes twice; {FIX}")
    columns = [list(cells) for cells in zip(*rows, strict=True)] or [[] for _ in header]
    return CsvTable(path, dict(zip(header, columns, strict=True)), lines)


@dataclass
class History:
    """What one member logged, by step: a resumed run may log a step again, and the last word counts."""

    member: str
    seed: int
    fold: int
    steps: dict[int, StepEvent] = field(default_factory=dict)
    evaluations: dict[int, EvaluationEvent] = field(default_factory=dict)
    finished: MemberEvent | None = None

    def kept_step(self, keep: str) -> int | None:
        """The step whose weights are kept ("best" or "last"): so far, where the member is unfinished."""
        if self.finished is not None and self.finished.step in self.evaluations:
            return self.finished.step
        return max((step for step, one in self.evaluations.items() if one.best or keep == "last"), default=None)

    @property
    def label(self) -> str:
        """For a legend."""
        return f"seed {self.seed}, fold {self.fold}"


def read_histories(path: Path) -> tuple[list[History], list[str]]:
    """Return the members' histories, by seed and fold, and what the reader of a report should know of the file.

    Raises:
        RunError: a line is not an event; it is named.
    """
    log = read_log(path)
    if log is None:
        return [], [f"{path.name} is not there: no curves."]
    histories: dict[str, History] = {}
    for event in (line.event for line in log.lines):
        if event is None:  # of a later version
            continue
        history = histories.setdefault(event.member, History(event.member, event.seed, event.fold))
        if isinstance(event, StepEvent):
            history.steps[event.step] = event
        elif isinstance(event, EvaluationEvent):
            history.evaluations[event.step] = event
        elif isinstance(event, MemberEvent):
            history.finished = event
    notes = [f"The last line of {path.name} is cut off, and left out."] if log.cut_off else []
    return sorted(histories.values(), key=lambda one: (one.seed, one.fold, one.member)), notes


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


@dataclass(frozen=True)
class ClassPredictions:
    """One of C classes a row; of two, the last is the positive one, of ratings the lowest is first.

    Attributes:
        names: (C,) of the classes.
        truth: (N,) indices of classes.
        probability: (N, C).
        label: (N,) indices: what is predicted by the thresholds.
        fold: (N,).
    """

    names: tuple[str, ...]
    truth: np.ndarray
    probability: np.ndarray
    label: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True)
class LabelPredictions:
    """Any of L labels a row: `truth` (N, L) 0, 1, or −1 for unknown; `probability` and `label` (N, L); `fold` (N,)."""

    names: tuple[str, ...]
    truth: np.ndarray
    probability: np.ndarray
    label: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True)
class NumberPredictions:
    """Numbers in the target's own units: `truth` (NaN: unknown) and `prediction` (N, columns); `fold` (N,).

    `origins` (N,) is when each forecast was made, of a time series; else None.
    """

    names: tuple[str, ...]
    truth: np.ndarray
    prediction: np.ndarray
    fold: np.ndarray
    origins: tuple[str, ...] | None = None


Predictions = ClassPredictions | LabelPredictions | NumberPredictions


def read_predictions(run: ReportedRun) -> Predictions | None:
    """The out-of-fold predictions; None when there is no oof.csv, or no row in it.

    Raises:
        ReportError: a column is missing, a cell is not what its column holds (its line is named).
    """
    table = run.oof
    if table is None or not table.lines:
        return None
    fold = table.numbers("fold").astype(np.int64)
    if run.task == "multilabel":
        return _labels(table, fold)
    if run.task in ("regression", "time_series"):
        return _numbers(table, fold, run.task == "time_series", run.target[0])
    return _classes(table, fold, run)


def _classes(table: CsvTable, fold: np.ndarray, run: ReportedRun) -> ClassPredictions:
    if run.task == "binary":
        names = run.classes or ("0", "1")
        positive = _probabilities(table, "probability")
        probability = np.stack([1 - positive, positive], axis=1)  # (N, 2)
    else:
        names = tuple(table.named("probability:"))
        columns = [_probabilities(table, f"probability:{name}") for name in names]
        probability = np.stack(columns, axis=1) if columns else np.zeros((len(fold), 0))  # (N, C)
    if len(names) < 2 or (run.classes and len(names) != len(run.classes)):
        raise ReportError(
            f"{table.path}: probabilities of {len(names)} classes, run.json has {len(run.classes)}; {FIX}"
        )
    same = _same if len({_same(name) for name in names}) == len(names) else str  # 007 and 7 may be two classes
    index = {same(name): i for i, name in enumerate(names)}
    index |= {same(escaped_formula(name)): i for i, name in enumerate(names)}
    expected = f"one of the classes {', '.join(names[:10])}{' …' if len(names) > 10 else ''}"
    truth, label = (
        np.array(table.parsed(column, table.cells(column), lambda cell: index[same(cell)], expected))
        for column in (_only(table), "label")
    )
    return ClassPredictions(names, truth, probability, label, fold)


def _labels(table: CsvTable, fold: np.ndarray) -> LabelPredictions:
    names = tuple(table.named("target:"))
    if not names:
        raise ReportError(f"{table.path}: no column 'target:…'; {FIX}")

    def entries(prefix: str, allowed: tuple[float, ...]) -> np.ndarray:
        columns = [
            table.parsed(prefix + name, table.cells(prefix + name), _one_of(allowed), "0 or 1") for name in names
        ]
        return np.array(columns).T  # (N, L)

    probability = np.stack([_probabilities(table, f"probability:{name}") for name in names], axis=1)
    return LabelPredictions(names, entries("target:", (-1, 0, 1)), probability, entries("label:", (0, 1)), fold)


def _numbers(table: CsvTable, fold: np.ndarray, forecast: bool, target: str) -> NumberPredictions:
    truths = truth_columns(table.columns)
    if not truths:
        raise ReportError(f"{table.path}: no column 'target'; {FIX}")
    return NumberPredictions(
        (target,) if truths == ["target"] else tuple(name.removeprefix("target:") for name in truths),
        np.stack([table.numbers(name, missing=True) for name in truths], axis=1),
        np.stack([table.numbers(name.replace("target", "prediction", 1)) for name in truths], axis=1),
        fold,
        tuple(table.cells("made_at")) if forecast else None,
    )


def _only(table: CsvTable) -> str:
    names = truth_columns(table.columns)
    if len(names) != 1:
        raise ReportError(f"{table.path}: {len(names)} columns 'target', expected one; {FIX}")
    return names[0]


def _probabilities(table: CsvTable, name: str) -> np.ndarray:
    def parse(cell: str) -> float:
        value = float(cell)
        if not 0 <= value <= 1:
            raise ValueError(cell)
        return value

    return np.array(table.parsed(name, table.cells(name), parse, "a probability, 0 to 1"), np.float64)


def _one_of(allowed: tuple[float, ...]) -> Callable[[str], int]:
    def parse(cell: str) -> int:
        value = float(cell)
        if value not in allowed:
            raise ValueError(cell)
        return int(value)

    return parse


def _same(cell: str) -> str:
    """A class however it is written: 1 and 1.0 are one (pandas writes floats where a value is missing elsewhere)."""
    try:
        return shown(float(cell))
    except ValueError:
        return cell.strip()


BINS = 15  # as `heads.metrics.ece`


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram over bins of equal width.

    Attributes:
        rows: (bins,) how many probabilities fall into each.
        probability: (bins,) their mean; NaN in an empty one.
        happened: (bins,) share of those that came true; NaN in an empty one.
        ece: expected calibration error, `heads.metrics.ece`.
        what: the probability, in a sentence.
        unit: of `rows`.
    """

    rows: np.ndarray
    probability: np.ndarray
    happened: np.ndarray
    ece: float
    what: str
    unit: str


def reliability(made: ClassPredictions | LabelPredictions) -> Reliability:
    """Of two classes the positive one's probability, of several the best one's, of labels every known entry's."""
    if isinstance(made, LabelPredictions):
        known = made.truth >= 0
        truth, probability = made.truth[known], made.probability[known]
        what = f"All {known.sum():,} known entries of the {len(made.names)} labels together."
        return _binned(truth, probability, what, "entries")
    if len(made.names) == 2:
        what = f"The predicted probability of class {made.names[1]}."
        return _binned(made.truth, made.probability[:, 1], what, "rows")
    best = made.probability.argmax(axis=1)
    what = "The probability of the likeliest class, against how often that is the true one."
    return _binned((best == made.truth).astype(np.int64), made.probability.max(axis=1), what, "rows")


def _binned(happened: np.ndarray, probability: np.ndarray, what: str, unit: str) -> Reliability:
    bins = np.digitize(probability, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    rows = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights=values, minlength=BINS) / rows for values in (probability, happened)]
    return Reliability(rows, means[0], means[1], ece(happened, probability, n_bins=BINS), what, unit)
