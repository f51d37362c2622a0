"""oof.csv as arrays: what was true and what was predicted, of each kind of task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlxbert.factory.frames import shown
from mlxbert.report.csv_table import FIX, CsvTable
from mlxbert.report.report_error import ReportError
from mlxbert.report.run_files import ReportedRun
from mlxbert.runs.tables import escaped_formula, truth_columns


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
