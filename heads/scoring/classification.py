"""Metrics of predicted labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heads.errors import HeadError
from heads.scoring.definition import metric, notice, sklearn_metrics
from heads.scoring.inputs import MASKED, Undefined, class_indices, refuse_masked


@metric("labels", "rows", ("binary", "multiclass", "ordinal"), greater_is_better=True)
def accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Share of the rows that are right."""
    return float(sklearn_metrics().accuracy_score(y_true, y_pred))


@metric("labels", "rows", ("binary", "multiclass", "ordinal"), greater_is_better=True)
def balanced_accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Mean recall over the classes that `y_true` has; not rescaled for chance."""
    return float(sklearn_metrics().balanced_accuracy_score(y_true, y_pred))


@metric("labels", "rows", ("binary", "multiclass"), greater_is_better=True)
def mcc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Matthews correlation. Constant predictions give 0, as in scikit-learn; nan when `y_true` has one class."""
    if len(np.unique(y_true)) < 2:
        raise Undefined("y_true has one class")
    return float(sklearn_metrics().matthews_corrcoef(y_true, y_pred))


@metric("scores", "classes", ("multiclass", "ordinal"), greater_is_better=True)
def top_k_accuracy(
    y_true: np.ndarray, y_pred: np.ndarray, *, k: int = 5, labels: Sequence[object] | None = None
) -> float:
    """Share of the rows whose class is among the `k` best scored. With k ≥ C it is 1, which a warning says.

    Scores (N, C); `labels` names the columns where they are not 0 … C−1.
    """
    if y_true.ndim == 2:
        raise HeadError("top_k_accuracy: y_true (N, L) has several labels a row; fix: class labels (N,)")
    classes = y_pred.shape[1]
    y_true = class_indices("top_k_accuracy", y_true, classes, labels)
    if k < 1:
        raise HeadError(f"top_k_accuracy: k={k}; fix: 1 or more")
    if k >= classes:
        notice(f"it is 1 whatever is predicted, as k={k} is not less than the {classes} classes")
        return 1.0
    if classes == 2:  # scikit-learn wants one score a row here, and guesses its threshold from the range
        return float(sklearn_metrics().accuracy_score(y_true, y_pred.argmax(axis=1)))
    return float(sklearn_metrics().top_k_accuracy_score(y_true, y_pred, k=k, labels=np.arange(classes)))


@metric("labels", "columns", ("multilabel",), greater_is_better=True)
def subset_accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Share of the rows of which every label is right."""
    refuse_masked("subset_accuracy", y_true)
    return float(sklearn_metrics().accuracy_score(y_true, y_pred))


@metric("labels", "columns", ("multilabel",), greater_is_better=False)
def hamming_loss(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Share of the known entries that are wrong."""
    known = y_true != MASKED
    if not known.any():
        raise Undefined("no label is known")
    return float(sklearn_metrics().hamming_loss(y_true[known], y_pred[known]))


@metric("labels", "rows", ("ordinal",), greater_is_better=True)
def quadratic_kappa(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[int] | None = None) -> float:
    """Quadratic weighted kappa of whole ratings; nan when all of both is one rating.

    Distances are those between places in `labels`, by default every whole number from the lowest to the highest
    rating of either side: a rating that nobody gave still counts as a step.
    """
    both = np.concatenate([y_true, y_pred])
    if labels is None:
        if both.dtype.kind != "i":
            raise HeadError("quadratic_kappa: ratings that are not numbers have no order; fix: labels=, lowest first")
        labels = range(int(both.min()), int(both.max()) + 1)
    elif not np.isin(both, labels).all():
        strange = both[~np.isin(both, labels)][0]
        raise HeadError(f"quadratic_kappa: rating {strange} is not among labels={list(labels)}")
    if len(np.unique(both)) < 2:
        raise Undefined("y_true and y_pred are all one rating")
    return float(sklearn_metrics().cohen_kappa_score(y_true, y_pred, labels=list(labels), weights="quadratic"))


@metric("labels", "rows", ("ordinal",), greater_is_better=True)
def accuracy_within_one(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Share of the rows whose rating is at most one off."""
    if y_true.dtype.kind != "i" or y_pred.dtype.kind != "i":
        raise HeadError("accuracy_within_one needs ratings that are whole numbers")
    return float((np.abs(y_true - y_pred) <= 1).mean())
