"""Metrics of probabilities: (N,) of class 1, (N, C) of exclusive classes, or (N, L) of labels (mean over labels)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from heads.errors import HeadError
from heads.scoring.averaging import column_mean
from heads.scoring.definition import metric, sklearn_metrics
from heads.scoring.inputs import binary_columns, class_indices, positives


@metric("probabilities", "any", ("binary", "multiclass", "multilabel", "ordinal"), greater_is_better=False)
def log_loss(
    y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None, pos_label: Any = None
) -> float:
    """Mean negative log-likelihood, probabilities clipped to float64's epsilon; classes may lack in `y_true`."""
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
    """Brier score: (p − y)² for one probability (0 … 1), its sum over classes for (N, C) (0 … 2), as Brier 1950."""
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
    """Expected calibration error over `n_bins` bins (low, high] of equal width, Guo et al. 2017, arXiv 1706.04599.

    Of (N, C): the best class' probability against how often it is right. Of (N,) and (N, L): the probability of class
    1 against how often it is there.
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
