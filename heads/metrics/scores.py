"""Metrics of scores and probabilities: of their order (whatever their scale), and of probabilities themselves.

Probabilities are (N,) of class 1, (N, C) of exclusive classes, or (N, L) of labels (mean over labels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from heads.errors import HeadError
from heads.metrics.definition import (
    Column,
    Undefined,
    binary_columns,
    class_indices,
    column_mean,
    column_values,
    framed,
    metric,
    positives,
    refuse_masked,
    sklearn_metrics,
)


@metric("scores", "rows", ("binary",), greater_is_better=True)
def roc_auc(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Return the area under the ROC curve; nan if `y_true` has one class."""
    return _roc_auc(positives("roc_auc", "y_true", y_true, pos_label), y_pred)


@metric("scores", "classes", ("multiclass", "multilabel"), greater_is_better=True)
def roc_auc_macro(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    *,
    labels: Sequence[Any] | None = None,
    skip_undefined: bool = True,
) -> float:
    """Return the mean ROC-AUC over labels (N, L), or over classes against the rest (N, C).

    A column of one class is left out with a warning; with `skip_undefined=False` the mean is then nan.
    """
    return column_mean(binary_columns("roc_auc_macro", y_true, y_pred, labels), _roc_auc, skip_undefined)


@framed("scores", "classes", per_column=True)
def roc_auc_per_label(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None) -> np.ndarray:
    """Return the ROC-AUC (L,) of every label or class; nan, with one warning for all, in columns of one class."""
    return column_values(binary_columns("roc_auc_per_label", y_true, y_pred, labels), _roc_auc)


@metric("scores", "rows", ("binary",), greater_is_better=True)
def pr_auc(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Return the average precision, the area under the steps of the precision-recall curve; nan without a positive."""
    return _pr_auc(positives("pr_auc", "y_true", y_true, pos_label), y_pred)


@metric("scores", "classes", ("multiclass", "multilabel"), greater_is_better=True)
def pr_auc_macro(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    *,
    labels: Sequence[Any] | None = None,
    skip_undefined: bool = True,
) -> float:
    """Return the mean average precision over labels or classes; columns without a positive as in `roc_auc_macro`."""
    return column_mean(binary_columns("pr_auc_macro", y_true, y_pred, labels), _pr_auc, skip_undefined)


@framed("scores", "classes", per_column=True)
def pr_auc_per_label(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None) -> np.ndarray:
    """Return the average precision (L,) of every label or class; nan, with a warning, without a positive."""
    return column_values(binary_columns("pr_auc_per_label", y_true, y_pred, labels), _pr_auc)


@metric("scores", "columns", ("multilabel",), greater_is_better=True)
def label_ranking_ap(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the label-ranking average precision; a row with no label, or with all, is 1, as in scikit-learn."""
    refuse_masked("label_ranking_ap", y_true)
    return float(sklearn_metrics().label_ranking_average_precision_score(y_true, y_pred))


@metric("values", "same", ("regression", "ordinal", "time_series"), greater_is_better=True)
def pearson(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the Pearson correlation (of columns: their mean); nan if a side is constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, y_true, y_pred, skip_undefined)


@metric("values", "same", ("regression", "ordinal", "time_series"), greater_is_better=True)
def spearman(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the Spearman rank correlation (of columns: their mean); nan if a side is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, y_true, y_pred, skip_undefined)


@metric("values", "same", ("regression", "ordinal", "time_series"), greater_is_better=True)
def kendall(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return Kendall's τ-b (of columns: their mean); nan if a side is constant."""
    from scipy.stats import kendalltau

    return _correlation(kendalltau, y_true, y_pred, skip_undefined)


def _roc_auc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    if y_true.all() or not y_true.any():
        raise Undefined(f"y_true has one class, all {y_true[0]}")
    return float(sklearn_metrics().roc_auc_score(y_true, y_pred))


def _pr_auc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    if not y_true.any():
        raise Undefined("there is no positive")
    return float(sklearn_metrics().average_precision_score(y_true, y_pred))


def _correlation(function: Callable[..., Any], y_true: np.ndarray, y_pred: np.ndarray, skip_undefined: bool) -> float:
    def of_column(column_true: np.ndarray, column_pred: np.ndarray) -> float:
        if len(column_true) < 2:
            raise Undefined("there are fewer than two rows")
        for what, values in (("y_true", column_true), ("y_pred", column_pred)):
            if (values == values[0]).all():
                raise Undefined(f"{what} is constant")
        return float(function(column_true, column_pred).statistic)

    if y_true.ndim == 1:
        return of_column(y_true, y_pred)
    columns: list[Column] = list(zip(y_true.T, y_pred.T, strict=True))
    return column_mean(columns, of_column, skip_undefined)


@metric("probabilities", "any", ("binary", "multiclass", "multilabel", "ordinal"), greater_is_better=False)
def log_loss(
    y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None, pos_label: Any = None
) -> float:
    """Return the mean negative log-likelihood, probabilities clipped by float64's epsilon; classes may be absent."""
    if y_true.ndim < y_pred.ndim:
        classes = y_pred.shape[1]
        indices = class_indices("log_loss", y_true, classes, labels)
        return float(sklearn_metrics().log_loss(indices, y_pred, labels=np.arange(classes)))
    return _binary_or_columns(
        "log_loss",
        lambda true, pred: float(sklearn_metrics().log_loss(true, pred, labels=[0, 1])),
        y_true,
        y_pred,
        pos_label,
    )


@metric("probabilities", "any", ("binary", "multiclass", "multilabel", "ordinal"), greater_is_better=False)
def brier(
    y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None, pos_label: Any = None
) -> float:
    """Return the Brier score (1950): (p − y)² of one probability, 0 … 1; its sum over classes for (N, C), 0 … 2."""
    if y_true.ndim < y_pred.ndim:
        classes = y_pred.shape[1]
        one_hot = np.eye(classes)[class_indices("brier", y_true, classes, labels)]
        return float(sklearn_metrics().mean_squared_error(one_hot, y_pred) * classes)
    return _binary_or_columns(
        "brier",
        lambda true, pred: float(sklearn_metrics().brier_score_loss(true, pred, pos_label=1)),
        y_true,
        y_pred,
        pos_label,
    )


@metric("probabilities", "any", ("binary", "multiclass", "multilabel", "ordinal"), greater_is_better=False)
def ece(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    *,
    n_bins: int = 15,
    labels: Sequence[Any] | None = None,
    pos_label: Any = None,
) -> float:
    """Return the expected calibration error over `n_bins` bins (low, high] of equal width, arXiv 1706.04599.

    Guo et al. 2017. For (N, C) it compares the probability of the best class with the share of rows where that class
    is right; for (N,) and (N, L) the probability of class 1 with the share of rows of class 1.
    """
    if n_bins < 1:
        raise HeadError(f"ece: n_bins={n_bins}; fix: 1 or more")
    if y_true.ndim < y_pred.ndim:
        indices = class_indices("ece", y_true, y_pred.shape[1], labels)
        return _calibration_error(y_pred.argmax(axis=1) == indices, y_pred.max(axis=1), n_bins)
    return _binary_or_columns(
        "ece", lambda true, pred: _calibration_error(true, pred, n_bins), y_true, y_pred, pos_label
    )


def _calibration_error(happened: np.ndarray, probability: np.ndarray, n_bins: int) -> float:
    inner_edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    bins = np.digitize(probability, inner_edges, right=True)
    # A bin's weight n_b / N times its |mean difference| is its |sum of differences| / N.
    return float(np.abs(np.bincount(bins, weights=happened - probability)).sum() / len(probability))


def _binary_or_columns(
    name: str,
    score: Callable[[np.ndarray, np.ndarray], float],
    y_true: np.ndarray,
    y_pred: np.ndarray,
    pos_label: Any,
) -> float:
    if y_true.ndim == 1:
        return score(positives(name, "y_true", y_true, pos_label), y_pred)
    return column_mean(binary_columns(name, y_true, y_pred, None), score)
