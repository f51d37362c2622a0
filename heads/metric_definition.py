"""`METRICS`, the table of all metrics, and the frame around each: checked input, nan with one warning if undefined."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

import mlx.core as mx
import numpy as np

from heads.command_line import install_fix
from heads.errors import HeadError, MetricUndefinedWarning, unknown_name

Needs = Literal["labels", "scores", "probabilities", "values"]
# rows: (N,) twice. same: (N,) or (N, L) twice. columns: (N, L) twice. classes: (N,) and (N, C) or columns.
# any: all of these.
Shapes = Literal["rows", "same", "columns", "classes", "any"]
# An unknown multilabel target; its entry is left out, column by column.
MASKED = -1


class Undefined(Exception):  # noqa: N818 - not an error: it becomes nan and a warning
    """The metric has no value on these rows; the message completes "undefined, …"."""


def checked(name: str, needs: Needs, shapes: Shapes, y_true: Any, y_pred: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both as numpy arrays (floats as float64, integral labels as int64).

    Raises:
        HeadError: the shapes do not fit, or `y_pred` is of another kind than needed.
        Undefined: there are no rows, or a number is not finite (a run that diverged goes on to its end).
    """
    y_true, y_pred = _as_array(name, "y_true", y_true), _as_array(name, "y_pred", y_pred)
    _check_shapes(name, shapes, y_true, y_pred)
    if not y_pred.size:
        raise Undefined("there are no rows")
    for what, array in (("y_true", y_true), ("y_pred", y_pred)):
        if array.dtype.kind == "f" and (bad := int((~np.isfinite(array)).sum())):
            raise Undefined(f"{bad} of {array.size} numbers in {what} are not finite")
    if needs == "values":
        return _numbers(name, "y_true", y_true), _numbers(name, "y_pred", y_pred)
    y_true = _labels(name, "y_true", y_true)
    if y_true.ndim == 2 and not np.isin(y_true, (0, 1, MASKED)).all():
        raise HeadError(f"{name}: y_true {y_true.shape} holds other labels than 0 and 1 ({MASKED} where unknown)")
    if needs == "labels":
        y_pred = _labels(name, "y_pred", y_pred)
        if (y_true.dtype.kind in "iub") != (y_pred.dtype.kind in "iub"):
            raise HeadError(f"{name}: y_true holds {y_true.dtype} and y_pred {y_pred.dtype}; fix: labels of one kind")
        return y_true, y_pred
    y_pred = _numbers(name, "y_pred", y_pred)
    return y_true, (_probabilities(name, y_true, y_pred) if needs == "probabilities" else y_pred)


def positives(name: str, what: str, array: np.ndarray, pos_label: Any) -> np.ndarray:
    """Return binary labels as 0 and 1; without a `pos_label` they must be 0 and 1 already."""
    if pos_label is None:
        if not np.isin(array, (0, 1)).all():
            raise HeadError(f"{name}: {what} holds other labels than 0 and 1; fix: pos_label=, or a macro metric")
        return array
    if len(classes := np.unique(array)) > 2:
        raise HeadError(f"{name}: {what} holds {len(classes)} classes, not two; fix: a macro metric")
    return (array == pos_label).astype(np.int64)


def class_indices(name: str, y_true: np.ndarray, classes: int, labels: Sequence[Any] | None) -> np.ndarray:
    """Return targets as column numbers of y_pred; `labels` names the columns, which are 0 … C−1 without it."""
    known = np.arange(classes) if labels is None else np.asarray(labels)
    if len(known) != classes:
        raise HeadError(f"{name}: {len(known)} labels for the {classes} columns of y_pred; fix: one label a column")
    matches = y_true[:, None] == known  # (N, C)
    if not matches.any(axis=1).all():
        strange = y_true[~matches.any(axis=1)][0]
        raise HeadError(f"{name}: y_true holds {strange}, which is no column of y_pred; fix: labels=, in column order")
    return matches.argmax(axis=1)


def binary_columns(
    name: str, y_true: np.ndarray, y_pred: np.ndarray, labels: Sequence[Any] | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return a binary problem for each column: a label without its unknown entries, or a class against the rest."""
    if y_true.ndim == 1:
        y_true = np.eye(y_pred.shape[1], dtype=np.int64)[class_indices(name, y_true, y_pred.shape[1], labels)]
    keep = y_true != MASKED
    return [(y_true[keep[:, c], c], y_pred[keep[:, c], c]) for c in range(y_pred.shape[1])]


def refuse_masked(name: str, y_true: np.ndarray) -> None:
    """Refuse unknown labels, for metrics that compare whole rows."""
    if (y_true == MASKED).any():
        raise HeadError(f"{name} compares whole rows, and y_true has unknown labels ({MASKED}); fix: drop those rows")


def _as_array(name: str, what: str, values: Any) -> np.ndarray:
    if isinstance(values, mx.array) and values.dtype == mx.bfloat16:
        values = values.astype(mx.float32)  # numpy has no bfloat16
    array = np.asarray(values)
    if array.dtype == object:
        array = np.array(array.tolist())
    if array.dtype == object:
        raise HeadError(f"{name}: {what} holds missing or mixed values; fix: numbers or strings alone")
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    return array.astype(np.int64) if array.dtype.kind in "biu" else array


def _check_shapes(name: str, shapes: Shapes, y_true: np.ndarray, y_pred: np.ndarray) -> None:
    rows = y_true.ndim == y_pred.ndim == 1
    columns = y_true.ndim == y_pred.ndim == 2
    classes = y_true.ndim == 1 and y_pred.ndim == 2 and y_pred.shape[1] > 1
    fits, wanted = {
        "rows": (rows, "(N,) and (N,)"),
        "same": (rows or columns, "one shape, (N,) or (N, L)"),
        "columns": (columns, "(N, L) and (N, L)"),
        "classes": (classes or columns, "(N,) and (N, C), or (N, L) and (N, L)"),
        "any": (rows or columns or classes, "(N,) and (N,), (N,) and (N, C), or (N, L) and (N, L)"),
    }[shapes]
    if fits and (y_true.shape == y_pred.shape or (classes and len(y_true) == len(y_pred))):
        return
    one_column = [what for what, a in (("y_true", y_true), ("y_pred", y_pred)) if a.ndim == 2 and a.shape[1] == 1]
    fix = f"; fix: ravel {one_column[0]}" if len(one_column) == 1 and shapes not in ("columns", "classes") else ""
    raise HeadError(f"{name}: y_true {y_true.shape} and y_pred {y_pred.shape} must be {wanted}{fix}")


def _labels(name: str, what: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    if (array != np.round(array)).any():
        raise HeadError(f"{name} compares labels, and {what} holds fractions; fix: threshold, argmax or round first")
    return array.astype(np.int64)


def _numbers(name: str, what: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fi":
        raise HeadError(f"{name} needs numbers, and {what} is {array.dtype}")
    return array.astype(np.float64)


def _probabilities(name: str, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    if y_pred.min() < 0 or y_pred.max() > 1 + 1e-6:
        fix = "sigmoid" if y_true.ndim == y_pred.ndim else "softmax"
        raise HeadError(
            f"{name} needs probabilities, and y_pred goes from {y_pred.min():g} to {y_pred.max():g}; fix: {fix} first"
        )
    if y_true.ndim == y_pred.ndim:
        return np.clip(y_pred, 0, 1)
    totals = y_pred.sum(axis=1, keepdims=True)
    # The sum of a bfloat16 softmax differs from 1 by some 2^-8; a larger difference is another kind of array.
    worst = totals.ravel()[np.abs(totals - 1).argmax()]
    if abs(worst - 1) > 1e-2:
        raise HeadError(f"{name} needs probabilities, and a row of y_pred sums to {worst:g}; fix: softmax first")
    return y_pred / totals


CompetitionType = Literal["binary", "multiclass", "multilabel", "regression", "ordinal", "time_series"]
Result = TypeVar("Result", float, np.ndarray)
Column = tuple[np.ndarray, np.ndarray]
Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    `function(y_true, y_pred, **options)` returns a float, nan where undefined. `needs` says what `y_pred` holds: class
    labels, scores of any scale (logits, for example), probabilities, or values in the target's units.
    """

    name: str
    function: Callable[..., float]
    greater_is_better: bool
    needs: Needs
    competition_types: tuple[CompetitionType, ...]

    def __call__(self, y_true: Any, y_pred: Any, **options: Any) -> float:
        """Return the function's value."""
        return self.function(y_true, y_pred, **options)

    def is_better(self, candidate: float, best: float) -> bool:
        """Return whether `candidate` improves on `best`; nan never does, and every number improves on nan."""
        if math.isnan(candidate) or math.isnan(best):
            return math.isnan(best) and not math.isnan(candidate)
        return candidate > best if self.greater_is_better else candidate < best


METRICS: dict[str, Metric] = {}

_SHORT: dict[str, dict[str, str]] = {
    "auc": {"binary": "roc_auc", "multilabel": "roc_auc_macro"},
    "kappa": {"ordinal": "quadratic_kappa", "multiclass": "quadratic_kappa"},
    "f1": {"multiclass": "f1_macro", "multilabel": "f1_macro"},
}
"""Short name -> metric, by competition type."""


def get_metric(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        HeadError: there is none; the nearest names are given.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def metric_of(name: str, competition_type: str) -> Metric:
    """Return the metric of that name, or short name ("auc", "kappa"), for a type of competition.

    Raises:
        HeadError: there is none, or it is not for that type (the metrics for that type are given).
    """
    metric = get_metric(_SHORT.get(name, {}).get(competition_type, name))
    if competition_type not in metric.competition_types:
        fitting = ", ".join(name for name in sorted(METRICS) if competition_type in METRICS[name].competition_types)
        raise HeadError(f"metric {name!r} is not for {competition_type}; fix: one of {fitting}")
    return metric


def metric(
    needs: Needs, shapes: Shapes, types: tuple[CompetitionType, ...], *, greater_is_better: bool
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Decorator: frame a function and put it into `METRICS` under its own name."""

    def register(function: Callable[..., float]) -> Callable[..., float]:
        measured = framed(needs, shapes)(function)
        name = function.__name__
        METRICS[name] = Metric(name, measured, greater_is_better, needs, types)
        return measured

    return register


def framed(
    needs: Needs, shapes: Shapes, *, per_column: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorator: check the arrays before the call; turn `Undefined` into nan and one warning after it.

    Where scikit-learn and scipy warn that a value is undefined (UserWarning, RuntimeWarning), one warning in our words
    replaces theirs; their other warnings (deprecations) pass through. With `per_column`, nan is (L,).
    """

    def frame(function: Callable[..., Result]) -> Callable[..., Result]:
        name = function.__name__

        @functools.wraps(function)
        def measured(y_true: Any, y_pred: Any, **options: Any) -> Result:
            reasons: list[str] = []
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    value = function(*checked(name, needs, shapes, y_true, y_pred), **options)
                except Undefined as undefined:
                    value = np.full(np.shape(y_pred)[1], np.nan) if per_column else math.nan  # type: ignore[assignment]
                    reasons.append(f"undefined, {undefined}")
            quiet = [entry for entry in caught if issubclass(entry.category, UserWarning | RuntimeWarning)]
            reasons += [str(entry.message) for entry in quiet if entry.category is MetricUndefinedWarning]
            if not reasons and np.isnan(value).all():
                messages = [str(entry.message) for entry in quiet] or ["the computation gave no number"]
                reasons.append(f"undefined, {messages[0]}")
            for entry in caught:
                if entry not in quiet:
                    warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
            if reasons:
                warnings.warn(MetricUndefinedWarning(f"{name}: {'; '.join(reasons)}"), stacklevel=2)
            return value

        return measured

    return frame


def notice(reason: str) -> None:
    """Add `reason` to the warning of the metric that is being computed, although its value is a number."""
    warnings.warn(MetricUndefinedWarning(reason), stacklevel=2)


def sklearn_metrics() -> ModuleType:
    """Import `sklearn.metrics` at the first metric: a model loads and predicts without scikit-learn."""
    try:
        import sklearn.metrics
    except ModuleNotFoundError as error:
        raise HeadError(f"metrics need scikit-learn and scipy; fix: {install_fix('kaggle')}") from error
    return sklearn.metrics


def column_values(columns: Iterable[Column], score: Score) -> np.ndarray:
    """Return the score of each column (L,), nan where it is undefined; one notice names those columns."""
    values, reasons = _each(columns, score)
    if reasons:
        notice(f"undefined in {_listed(reasons, len(values))}")
    return values


def column_mean(columns: Iterable[Column], score: Score, skip_undefined: bool = True) -> float:
    """Return the mean of the scores of the columns that have one; a notice names the others.

    A fold with two positives of a rare label cannot have one in every part, and a mean that is then nan could choose
    no checkpoint. With `skip_undefined=False` it is nan all the same; if no column has a value, it is always nan.
    """
    values, reasons = _each(columns, score)
    if len(reasons) == len(values) or (reasons and not skip_undefined):
        raise Undefined(f"as it is in {_listed(reasons, len(values))}")
    if reasons:
        notice(f"the mean leaves out {_listed(reasons, len(values))}")
    return float(np.nanmean(values))


def mean_of_columns(of_column: Score, y_true: np.ndarray, y_pred: np.ndarray, skip_undefined: bool) -> float:
    """Return the score of (N,) numbers, or the mean over the columns of (N, L)."""
    if y_true.ndim == 1:
        return of_column(y_true, y_pred)
    return column_mean(list(zip(y_true.T, y_pred.T, strict=True)), of_column, skip_undefined)


def _each(columns: Iterable[Column], score: Score) -> tuple[np.ndarray, dict[int, str]]:
    """Return the score of each column, and for each undefined one the reason by its number."""
    values, reasons = [], {}
    for number, (y_true, y_pred) in enumerate(columns):
        try:
            if not y_true.size:
                raise Undefined("there are no rows")
            values.append(score(y_true, y_pred))
        except Undefined as undefined:
            values.append(np.nan)
            reasons[number] = str(undefined)
    return np.array(values), reasons


def _listed(reasons: dict[int, str], total: int) -> str:
    parts = [f"column {number} ({reason})" for number, reason in list(reasons.items())[:10]]
    more = f" … and {len(reasons) - 10} more" if len(reasons) > 10 else ""
    return f"{len(reasons)} of {total} columns: {', '.join(parts)}{more}"
