"""Metrics of predicted numbers, (N,) or (N, L); errors of several columns are pooled if nothing else is said.

Percentages are fractions: 0.1 is 10 %.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from heads.errors import HeadError
from heads.metrics.definition import CompetitionType, Undefined, column_mean, metric, sklearn_metrics

VALUES: tuple[CompetitionType, ...] = ("regression", "ordinal", "time_series")
SERIES: tuple[CompetitionType, ...] = ("time_series",)


@metric("values", "same", VALUES, greater_is_better=False)
def mse(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean squared error."""
    return float(sklearn_metrics().mean_squared_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "same", VALUES, greater_is_better=False)
def rmse(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the root of the mean squared error of all entries (the mean of columns' roots is `mcrmse`)."""
    return float(sklearn_metrics().root_mean_squared_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "columns", ("regression", "time_series"), greater_is_better=False)
def mcrmse(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean over columns of their RMSE."""
    return float(sklearn_metrics().root_mean_squared_error(y_true, y_pred, multioutput="uniform_average"))


@metric("values", "same", VALUES, greater_is_better=False)
def mae(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean absolute error."""
    return float(sklearn_metrics().mean_absolute_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "same", VALUES, greater_is_better=True)
def r2(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the share of the variance explained (of columns: their mean); nan if `y_true` is constant."""

    def of_column(column_true: np.ndarray, column_pred: np.ndarray) -> float:
        if (column_true == column_true[0]).all():
            raise Undefined("y_true is constant" if len(column_true) > 1 else "there are fewer than two rows")
        return float(sklearn_metrics().r2_score(column_true, column_pred))

    if y_true.ndim == 1:
        return of_column(y_true, y_pred)
    return column_mean(list(zip(y_true.T, y_pred.T, strict=True)), of_column, skip_undefined)


@metric("values", "same", ("regression", "time_series"), greater_is_better=False)
def rmsle(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the RMSE of log(1 + value); nan if a value is −1 or less."""
    for what, values in (("y_true", y_true), ("y_pred", y_pred)):
        if bad := int((values <= -1).sum()):
            raise Undefined(f"{bad} of {values.size} numbers in {what} are −1 or less")
    return float(sklearn_metrics().root_mean_squared_log_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "same", ("regression", "time_series"), greater_is_better=False)
def mape(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean of |error / y|; nan if a y is 0 (scikit-learn divides by 2e-16 there)."""
    if zeros := int((y_true == 0).sum()):
        raise Undefined(f"{zeros} of {y_true.size} targets are 0")
    return float(sklearn_metrics().mean_absolute_percentage_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "same", ("regression", "time_series"), greater_is_better=False)
def smape(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean of 2 |error| / (|y| + |prediction|), 0 … 2; an entry counts as 0 if both are 0."""
    size = np.abs(y_true) + np.abs(y_pred)
    return float((2 * np.abs(y_true - y_pred) / np.where(size == 0, 1, size)).mean())


@metric("values", "same", SERIES, greater_is_better=False)
def mase(y_true: np.ndarray, y_pred: np.ndarray, *, y_train: ArrayLike | None = None, seasonality: int = 1) -> float:
    """Return MAE divided by that of the seasonal naive forecast in the history, Hyndman and Koehler 2006.

    `y_train` (T,) is the history before `y_true`, in order of time. A value below 1 is better than the naive forecast.
    It is nan if the history is not longer than `seasonality`, or repeats exactly.
    """
    if seasonality < 1:
        raise HeadError(f"mase: seasonality={seasonality}; fix: 1 or more steps")
    if y_train is None:
        raise Undefined("there is no history to scale by: pass y_train=")
    history = np.asarray(y_train, dtype=np.float64)
    if history.ndim != 1:
        raise HeadError(f"mase: y_train has shape {history.shape}; fix: (T,), one series")
    if len(history) <= seasonality:
        raise Undefined(f"a history of {len(history)} values has no difference over {seasonality} steps")
    scale = np.abs(history[seasonality:] - history[:-seasonality]).mean()
    if scale == 0 or not np.isfinite(scale):
        raise Undefined(f"the history's mean difference over {seasonality} steps is {scale:g}")
    return float(sklearn_metrics().mean_absolute_error(y_true.ravel(), y_pred.ravel()) / scale)


@metric("values", "same", SERIES, greater_is_better=True)
def directional_accuracy(y_true: np.ndarray, y_pred: np.ndarray, *, last: ArrayLike | None = None) -> float:
    """Return the share of the steps whose direction (up, down, level) from the last true value is predicted.

    (N,) is one series in order of time, `last` the value before its first (without it, the first step is left out).
    (N, H) are N forecasts of H steps, `last` (N,) the values before each.
    """
    series = y_true[None] if y_true.ndim == 1 else y_true  # (N, H)
    forecast = y_pred[None] if y_true.ndim == 1 else y_pred
    before = series[:, :-1]
    if last is not None:
        start = np.asarray(last, dtype=np.float64).reshape(-1)
        if start.shape != (len(series),):
            raise HeadError(f"directional_accuracy: last has shape {np.shape(last)}; fix: one value a series")
        before = np.concatenate([start[:, None], before], axis=1)
    steps = before.shape[1]
    if not steps:
        raise Undefined("a single step has no direction: pass last=")
    actual = np.sign(series[:, -steps:] - before)
    return float((actual == np.sign(forecast[:, -steps:] - before)).mean())


@metric("values", "same", ("regression", "time_series"), greater_is_better=False)
def pinball(y_true: np.ndarray, y_pred: np.ndarray, *, quantile: float = 0.5) -> float:
    """Return the mean quantile loss of predicted `quantile`s."""
    if not 0 < quantile < 1:
        raise HeadError(f"pinball: quantile={quantile}; fix: a number in (0, 1)")
    return float(sklearn_metrics().mean_pinball_loss(y_true.ravel(), y_pred.ravel(), alpha=quantile))
