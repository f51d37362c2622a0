"""What a metric is, and the frame around each one: checked input, nan with one warning where it is undefined."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np

from heads.errors import HeadError, MetricUndefinedWarning
from heads.install import install_fix
from heads.scoring.inputs import Needs, Shapes, Undefined, checked

CompetitionType = Literal["binary", "multiclass", "multilabel", "regression", "ordinal", "time_series"]
Result = TypeVar("Result", float, np.ndarray)


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    `function(y_true, y_pred, **options)` gives a float, nan where undefined. `needs` says what `y_pred` holds: class
    labels, scores of any scale (logits do), probabilities, or values in the target's units.
    """

    name: str
    function: Callable[..., float]
    greater_is_better: bool
    needs: Needs
    competition_types: tuple[CompetitionType, ...]

    def __call__(self, y_true: Any, y_pred: Any, **options: Any) -> float:
        """The function's value."""
        return self.function(y_true, y_pred, **options)

    def is_better(self, candidate: float, best: float) -> bool:
        """Whether `candidate` improves on `best`. nan never does, and every number improves on nan."""
        if math.isnan(candidate) or math.isnan(best):
            return math.isnan(best) and not math.isnan(candidate)
        return candidate > best if self.greater_is_better else candidate < best


REGISTERED: dict[str, Metric] = {}


def metric(
    needs: Needs, shapes: Shapes, types: tuple[CompetitionType, ...], *, greater_is_better: bool
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Decorator: frame a function and put it into the table under its own name."""

    def register(function: Callable[..., float]) -> Callable[..., float]:
        measured = framed(needs, shapes)(function)
        name = function.__name__
        REGISTERED[name] = Metric(name, measured, greater_is_better, needs, types)
        return measured

    return register


def framed(
    needs: Needs, shapes: Shapes, *, per_column: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorator: arrays checked on the way in, `Undefined` turned into nan and one warning on the way out.

    Undefinedness that scikit-learn and scipy warn about (UserWarning, RuntimeWarning) is told once, in our words;
    what else they warn about (deprecations) passes through. With `per_column`, nan is (L,).
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
                told = [str(entry.message) for entry in quiet] or ["the computation gave no number"]
                reasons.append(f"undefined, {told[0]}")
            for entry in caught:
                if entry not in quiet:
                    warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
            if reasons:
                warnings.warn(MetricUndefinedWarning(f"{name}: {'; '.join(reasons)}"), stacklevel=2)
            return value

        return measured

    return frame


def notice(reason: str) -> None:
    """Have the warning of the metric being computed say `reason`, though its value is a number."""
    warnings.warn(MetricUndefinedWarning(reason), stacklevel=2)


def sklearn_metrics() -> ModuleType:
    """`sklearn.metrics`, imported when the first metric is computed: a model loads and predicts without it."""
    try:
        import sklearn.metrics
    except ModuleNotFoundError as error:
        raise HeadError(f"metrics need scikit-learn and scipy; fix: {install_fix('kaggle')}") from error
    return sklearn.metrics
