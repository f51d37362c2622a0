"""Read and check a run's files for a report, with the out-of-fold predictions as arrays.

run.json, scores.json and metrics.jsonl are read by `mlxbert.runs`. The CSV files are read here with `csv`, not pandas:
they may be damaged or hostile, and only `csv` distinguishes short rows from empty cells and gives line numbers.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from heads.metrics import ece
from mlxbert.data.frames import shown
from mlxbert.errors import MLXBertError
from mlxbert.files.reading import expand_home, read_text
from mlxbert.runs.files import RunFiles, escaped_formula, truth_columns
from mlxbert.runs.log import read_run_log
from mlxbert.runs.record import RunRecord, read_record
from mlxbert.runs.scores import Scores, read_scores
from mlxbert.training.callbacks import EvaluationEvent, MemberEvent, StepEvent

T = TypeVar("T")
FIX = "fix: restore the file, or move it away for a report without it"


class ReportError(MLXBertError):
    """A damaged table of a run, or an output that must not be written: one line with the place and the fix."""


# CSV files


@dataclass(frozen=True)
class CsvTable:
    """A CSV file of a run.

    Attributes:
        path: the file, for messages.
        columns: the cells of each column, by its name, in the file's order.
        lines: (rows,) the line, from 1, that each row ends on.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def names_after(self, prefix: str) -> tuple[str, ...]:
        """Return the rest of each column name that begins with `prefix`."""
        return tuple(name.removeprefix(prefix) for name in self.columns if name.startswith(prefix))

    def cells(self, name: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            ReportError: there is no column of that name.
        """
        if name not in self.columns:
            raise ReportError(f"{self.path}: no column {name!r}; {FIX}")
        return self.columns[name]

    def parsed(self, name: str, parse: Callable[[str], T], expected: str) -> list[T]:
        """Return every cell of a column through `parse`.

        Raises:
            ReportError: there is no such column, or `parse` raises ValueError or KeyError for a cell that is not
                `expected`; the message names its line.
        """
        values = []
        for cell, line in zip(self.cells(name), self.lines, strict=True):
            try:
                values.append(parse(cell))
            except (ValueError, KeyError):
                shown = cell if len(cell) <= 40 else f"{cell[:40]}…"
                raise ReportError(f"{self.path}: line {line}: {name} is {shown!r}, not {expected}; {FIX}") from None
        return values

    def numbers(self, name: str, *, may_miss: bool = False) -> np.ndarray:
        """Return a column as float64 (rows,); with `may_miss`, an empty cell is NaN; raises as `parsed`."""
        return np.array(self.parsed(name, partial(_finite, may_miss=may_miss), "a number"), np.float64)

    def probabilities(self, name: str) -> np.ndarray:
        """Return a column of probabilities as float64 (rows,); raises as `parsed`."""
        return np.array(self.parsed(name, _probability, "a probability, 0 to 1"), np.float64)


def _finite(cell: str, may_miss: bool) -> float:
    if may_miss and not cell.strip():
        return float("nan")
    value = float(cell)
    if not np.isfinite(value):
        raise ValueError(cell)
    return value


def _probability(cell: str) -> float:
    value = float(cell)
    if not 0 <= value <= 1:
        raise ValueError(cell)
    return value


def read_table(path: Path) -> CsvTable | None:
    """Return the table in a CSV file; None if there is no such file.

    Raises:
        ReportError: not UTF-8, no header, a name that comes twice, broken quotes, or a row of another length.
    """
    text = read_text(path, ReportError)
    if text is None:
        return None
    limit = csv.field_size_limit(sys.maxsize)  # a text may be longer than the 131072 characters that csv allows
    try:
        return _parsed_table(path, text)
    finally:
        csv.field_size_limit(limit)


def _parsed_table(path: Path, text: str) -> CsvTable:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        header = next(reader, None)
        if not header:
            raise ReportError(f"{path}: line 1: no header; {FIX}")
        for row in filter(None, reader):  # without blank lines
            if len(row) != len(header):
                raise ReportError(
                    f"{path}: line {reader.line_num}: {len(row)} cells under {len(header)} column names; {FIX}"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ReportError(f"{path}: line {reader.line_num}: {error}; {FIX}") from None
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ReportError(f"{path}: line 1: column {repeated[0]!r} comes twice; {FIX}")
    columns = [list(cells) for cells in zip(*rows, strict=True)] or [[] for _ in header]
    return CsvTable(path, dict(zip(header, columns, strict=True)), lines)


# The run


@dataclass
class History:
    """What one member logged, by step. A resumed run may log a step again: the last entry counts."""

    member: str
    seed: int
    fold: int
    steps: dict[int, StepEvent] = field(default_factory=dict)
    evaluations: dict[int, EvaluationEvent] = field(default_factory=dict)
    finished: MemberEvent | None = None

    def kept_step(self, keep: str) -> int | None:
        """Return the step whose weights are kept ("best" or "last"); so far, if the member is unfinished."""
        if self.finished is not None and self.finished.step in self.evaluations:
            return self.finished.step
        steps = (step for step, event in self.evaluations.items() if event.best or keep == "last")
        return max(steps, default=None)

    @property
    def label(self) -> str:
        """The member's name in a legend."""
        return f"seed {self.seed}, fold {self.fold}"


@dataclass(frozen=True)
class FinishedMember:
    """A trained member: the epoch of its weights, and their scores on its held-out rows (`rows` None: unknown)."""

    member: str
    rows: int | None
    epoch: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ReportedRun:
    """The data of a report.

    Attributes:
        path: the run's directory.
        record: run.json.
        histories: the log of each member that has begun, by seed and fold.
        scores: scores.json; None while the run is unfinished.
        oof: the out-of-fold predictions; None if there is no such file.
        worst: their worst rows; likewise.
        notes: on the files, for the reader.
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
    def classes(self) -> tuple[str, ...]:
        """The labels as text, lowest or negative first; () if there are none."""
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
    def finished(self) -> list[FinishedMember]:
        """The members that are trained, in order."""
        if self.scores is not None:
            return [FinishedMember(item.member, item.rows, item.epoch, item.metrics) for item in self.scores.members]
        events = [history.finished for history in self.histories if history.finished is not None]
        return [FinishedMember(event.member, None, event.epoch, event.metrics) for event in events]


def read_reported_run(run_directory: str | Path) -> ReportedRun:
    """Read the run in a directory, finished or not.

    Raises:
        RunError: no such directory, not a run, or damaged JSON of it; the message names the field or the line.
        ReportError: a damaged table of it; the message names the line.
    """
    path = expand_home(run_directory)
    files = RunFiles(path)
    record, scores = read_record(path), read_scores(path)
    histories, notes = _histories(files, record.members)
    oof, worst = read_table(files.oof), read_table(files.worst)
    if scores is not None:
        tables = ((files.oof, oof), (files.worst, worst))
        notes += [f"{file.name} is not there." for file, table in tables if table is None]
    return ReportedRun(path, record, histories, scores, oof, worst, tuple(notes))


def _histories(files: RunFiles, members: Sequence[str]) -> tuple[list[History], list[str]]:
    """Return the members' histories, by seed and fold, and notes on the file."""
    name, log = files.log.name, read_run_log(files, members)
    if log is None:
        return [], [f"{name} is not there: no curves."]
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
    notes = [f"The last line of {name} is cut off, and left out."] if log.cut_off else []
    return sorted(histories.values(), key=lambda history: (history.seed, history.fold, history.member)), notes


# Out-of-fold predictions


@dataclass(frozen=True)
class ClassPredictions:
    """One of C classes a row; of two, the last is the positive one, of ratings the lowest is first.

    Attributes:
        names: (C,) the classes.
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


OofPredictions = ClassPredictions | LabelPredictions | NumberPredictions


def read_predictions(run: ReportedRun) -> OofPredictions | None:
    """Return the out-of-fold predictions; None if there is no oof.csv, or no row in it.

    Raises:
        ReportError: a column is missing, or a cell is not what its column holds (the message names its line).
    """
    table = run.oof
    if table is None or not table.lines:
        return None
    fold = table.numbers("fold").astype(np.int64)
    if run.task == "multilabel":
        return _labels(table, fold)
    if run.task in ("regression", "time_series"):
        return _numbers(table, fold, run)
    return _classes(table, fold, run)


def _classes(table: CsvTable, fold: np.ndarray, run: ReportedRun) -> ClassPredictions:
    if run.task == "binary":
        names = run.classes or ("0", "1")
        positive = table.probabilities("probability")
        probability = np.stack([1 - positive, positive], axis=1)  # (N, 2)
    else:
        names = table.names_after("probability:")
        columns = [table.probabilities(f"probability:{name}") for name in names]
        probability = np.stack(columns, axis=1) if columns else np.zeros((len(fold), 0))  # (N, C)
    if len(names) < 2 or (run.classes and len(names) != len(run.classes)):
        raise ReportError(
            f"{table.path}: probabilities of {len(names)} classes, run.json has {len(run.classes)}; {FIX}"
        )
    truths = truth_columns(table.columns)
    if len(truths) != 1:
        raise ReportError(f"{table.path}: {len(truths)} columns 'target', expected one; {FIX}")
    same = _same if len({_same(name) for name in names}) == len(names) else str  # 007 and 7 may be two classes
    index = {same(name): i for i, name in enumerate(names)}
    index |= {same(escaped_formula(name)): i for i, name in enumerate(names)}
    expected = f"one of the classes {', '.join(names[:10])}{' …' if len(names) > 10 else ''}"
    truth, label = (
        np.array(table.parsed(column, lambda cell: index[same(cell)], expected)) for column in (truths[0], "label")
    )
    return ClassPredictions(names, truth, probability, label, fold)


def _same(cell: str) -> str:
    """Return one text for all spellings of a class: 1 and 1.0 (pandas writes floats where another is missing)."""
    try:
        return shown(float(cell))
    except ValueError:
        return cell.strip()


def _labels(table: CsvTable, fold: np.ndarray) -> LabelPredictions:
    names = table.names_after("target:")
    if not names:
        raise ReportError(f"{table.path}: no column 'target:…'; {FIX}")

    def entries(prefix: str, allowed: dict[float, int]) -> np.ndarray:
        columns = [table.parsed(prefix + name, lambda cell: allowed[float(cell)], "0 or 1") for name in names]
        return np.array(columns).T  # (N, L)

    probability = np.stack([table.probabilities(f"probability:{name}") for name in names], axis=1)
    truth, label = entries("target:", {-1: -1, 0: 0, 1: 1}), entries("label:", {0: 0, 1: 1})
    return LabelPredictions(names, truth, probability, label, fold)


def _numbers(table: CsvTable, fold: np.ndarray, run: ReportedRun) -> NumberPredictions:
    truths = truth_columns(table.columns)
    if not truths:
        raise ReportError(f"{table.path}: no column 'target'; {FIX}")
    return NumberPredictions(
        run.record.task.target[:1] if truths == ["target"] else table.names_after("target:"),
        np.stack([table.numbers(name, may_miss=True) for name in truths], axis=1),
        np.stack([table.numbers(name.replace("target", "prediction", 1)) for name in truths], axis=1),
        fold,
        tuple(table.cells("made_at")) if run.task == "time_series" else None,
    )


# Calibration


BINS = 15  # as `heads.metrics.ece`


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram over bins of equal width.

    Attributes:
        rows: (bins,) how many probabilities fall into each bin.
        probability: (bins,) their mean; NaN in an empty bin.
        happened: (bins,) the share of those that came true; NaN in an empty bin.
        ece: the expected calibration error, `heads.metrics.ece`.
        what: which probability this is, in a sentence.
        unit: what `rows` counts.
    """

    rows: np.ndarray
    probability: np.ndarray
    happened: np.ndarray
    ece: float
    what: str
    unit: str


def reliability(predictions: ClassPredictions | LabelPredictions) -> Reliability:
    """Return how well a probability is calibrated.

    Of two classes it is that of the positive one, of several that of the likeliest, of labels that of every known
    entry.
    """
    truth, probability, unit = predictions.truth, predictions.probability, "rows"
    if isinstance(predictions, LabelPredictions):
        known = truth >= 0
        happened, probability, unit = truth[known], probability[known], "entries"
        what = f"All {known.sum():,} known entries of the {len(predictions.names)} labels together."
    elif len(predictions.names) == 2:
        happened, probability = truth, probability[:, 1]
        what = f"The predicted probability of class {predictions.names[1]}."
    else:
        happened = (probability.argmax(axis=1) == truth).astype(np.int64)
        probability = probability.max(axis=1)
        what = "The probability of the likeliest class, against how often that is the true one."
    bins = np.digitize(probability, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    rows = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights=values, minlength=BINS) / rows for values in (probability, happened)]
    return Reliability(rows, means[0], means[1], ece(happened, probability, n_bins=BINS), what, unit)
