"""`METRICS`, the table of all metrics, and the frame around each: checked input, nan with one warning if undefined."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np

from heads.errors import HeadError, MetricUndefinedWarning, unknown_name
from heads.install import install_fix
from heads.metrics.inputs import Needs, Shapes, Undefined, checked

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
