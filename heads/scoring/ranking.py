"""Metrics of the order that scores give, whatever their scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from heads.scoring.averaging import Column, column_mean, column_values
from heads.scoring.definition import framed, metric, sklearn_metrics
from heads.scoring.inputs import Undefined, binary_columns, positives, refuse_masked


@metric("scores", "rows", ("binary",), greater_is_better=True)
def roc_auc(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Area under the ROC curve; nan when `y_true` has one class."""
    return _roc_auc(positives("roc_auc", "y_true", y_true, pos_label), y_pred)


@metric("scores", "classes", ("multiclass", "multilabel"), greater_is_better=True)
def roc_auc_macro(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    *,
    labels: Sequence[Any] | None = None,
    skip_undefined: bool = True,
) -> float:
    """Mean ROC-AUC over labels (N, L), or over classes against the rest (N, C).

    A column of one class is left out with a warning, or makes it nan with `skip_undefined=False`.
    """
    return column_mean(binary_columns("roc_auc_macro", y_true, y_pred, labels), _roc_auc, skip_undefined)


@framed("scores", "classes", per_column=True)
def roc_auc_per_label(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None) -> np.ndarray:
    """ROC-AUC (L,) of every label or class; nan, with one warning for all, in columns of one class."""
    return column_values(binary_columns("roc_auc_per_label", y_true, y_pred, labels), _roc_auc)


@metric("scores", "rows", ("binary",), greater_is_better=True)
def pr_auc(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Area under the precision-recall curve as average precision (steps, not trapezes); nan without a positive."""
    return _pr_auc(positives("pr_auc", "y_true", y_true, pos_label), y_pred)


@metric("scores", "classes", ("multiclass", "multilabel"), greater_is_better=True)
def pr_auc_macro(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    *,
    labels: Sequence[Any] | None = None,
    skip_undefined: bool = True,
) -> float:
    """Mean average precision over labels or classes; one without a positive is left out, as in `roc_auc_macro`."""
    return column_mean(binary_columns("pr_auc_macro", y_true, y_pred, labels), _pr_auc, skip_undefined)


@framed("scores", "classes", per_column=True)
def pr_auc_per_label(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None) -> np.ndarray:
    """Average precision (L,) of every label or class; nan, with one warning for all, in columns without a positive."""
    return column_values(binary_columns("pr_auc_per_label", y_true, y_pred, labels), _pr_auc)


@metric("scores", "columns", ("multilabel",), greater_is_better=True)
def label_ranking_ap(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Label-ranking average precision; a row with no label, or with all, counts 1, as in scikit-learn."""
    refuse_masked("label_ranking_ap", y_true)
    return float(sklearn_metrics().label_ranking_average_precision_score(y_true, y_pred))


@metric("values", "same", ("regression", "ordinal", "time_series"), greater_is_better=True)
def pearson(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Pearson correlation (of columns: their mean); nan when a side is constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, y_true, y_pred, skip_undefined)


@metric("values", "same", ("regression", "ordinal", "time_series"), greater_is_better=True)
def spearman(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Spearman rank correlation (of columns: their mean); nan when a side is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, y_true, y_pred, skip_undefined)


@metric("values", "same", ("regression", "ordinal", "time_series"), greater_is_better=True)
def kendall(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Kendall's τ-b (of columns: their mean); nan when a side is constant."""
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
