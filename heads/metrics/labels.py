"""Metrics of predicted labels.

Precision, recall and F1 are of the positives (binary), the mean over classes or labels (macro), over all entries
(micro), or the mean over rows (samples). 0/0 is undefined. A macro mean leaves out a class or label that neither
occurs nor is predicted (scikit-learn counts it as 0, so that a perfect prediction is not 1). In a macro mean the
precision of a class that occurs and is never predicted is 0, as in scikit-learn; otherwise it would pay never to
predict a difficult class. A row without labels for which none is predicted is right: its value is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from heads.errors import HeadError
from heads.metrics.definition import (
    MASKED,
    CompetitionType,
    Undefined,
    binary_columns,
    class_indices,
    column_mean,
    metric,
    notice,
    positives,
    refuse_masked,
    sklearn_metrics,
)


@metric("labels", "rows", ("binary", "multiclass", "ordinal"), greater_is_better=True)
def accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the share of the rows that are right."""
    return float(sklearn_metrics().accuracy_score(y_true, y_pred))


@metric("labels", "rows", ("binary", "multiclass", "ordinal"), greater_is_better=True)
def balanced_accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean recall over the classes that `y_true` has; not rescaled for chance."""
    return float(sklearn_metrics().balanced_accuracy_score(y_true, y_pred))


@metric("labels", "rows", ("binary", "multiclass"), greater_is_better=True)
def mcc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the Matthews correlation: 0 for constant predictions, as scikit-learn; nan if `y_true` has one class."""
    if len(np.unique(y_true)) < 2:
        raise Undefined("y_true has one class")
    return float(sklearn_metrics().matthews_corrcoef(y_true, y_pred))


@metric("scores", "classes", ("multiclass", "ordinal"), greater_is_better=True)
def top_k_accuracy(
    y_true: np.ndarray, y_pred: np.ndarray, *, k: int = 5, labels: Sequence[object] | None = None
) -> float:
    """Return the share of the rows whose class is among the `k` best scored; with k ≥ C it is 1, with a warning.

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
    if classes == 2:  # scikit-learn takes one score a row here, and guesses its threshold from the range
        return float(sklearn_metrics().accuracy_score(y_true, y_pred.argmax(axis=1)))
    return float(sklearn_metrics().top_k_accuracy_score(y_true, y_pred, k=k, labels=np.arange(classes)))


@metric("labels", "columns", ("multilabel",), greater_is_better=True)
def subset_accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the share of the rows of which every label is right."""
    refuse_masked("subset_accuracy", y_true)
    return float(sklearn_metrics().accuracy_score(y_true, y_pred))


@metric("labels", "columns", ("multilabel",), greater_is_better=False)
def hamming_loss(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the share of the known entries that are wrong."""
    known = y_true != MASKED
    if not known.any():
        raise Undefined("no label is known")
    return float(sklearn_metrics().hamming_loss(y_true[known], y_pred[known]))


@metric("labels", "rows", ("ordinal",), greater_is_better=True)
def quadratic_kappa(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[int] | None = None) -> float:
    """Return the quadratic weighted kappa of whole ratings; nan if all ratings are the same.

    Distances are between places in `labels`. The default is every whole number from the lowest to the highest rating
    of either side: a rating that does not occur still counts as a step.
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
    """Return the share of the rows whose rating is at most one off."""
    if y_true.dtype.kind != "i" or y_pred.dtype.kind != "i":
        raise HeadError("accuracy_within_one needs ratings that are whole numbers")
    return float((np.abs(y_true - y_pred) <= 1).mean())


Score = Literal["precision", "recall", "f1"]
BINARY: tuple[CompetitionType, ...] = ("binary",)
CLASSES: tuple[CompetitionType, ...] = ("binary", "multiclass", "multilabel", "ordinal")
MULTILABEL: tuple[CompetitionType, ...] = ("multilabel",)


@metric("labels", "rows", BINARY, greater_is_better=True)
def precision(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Return the share of the predicted positives that are positive; nan if nothing is predicted positive."""
    return _binary("precision", y_true, y_pred, pos_label)


@metric("labels", "rows", BINARY, greater_is_better=True)
def recall(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Return the share of the positives that are predicted; nan without a positive."""
    return _binary("recall", y_true, y_pred, pos_label)


@metric("labels", "rows", BINARY, greater_is_better=True)
def f1(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Return 2 tp / (2 tp + fp + fn); nan if there is no positive and none is predicted."""
    return _binary("f1", y_true, y_pred, pos_label)


@metric("labels", "same", CLASSES, greater_is_better=True)
def precision_macro(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the mean of the precision of every class or label."""
    return _macro("precision", y_true, y_pred, skip_undefined)


@metric("labels", "same", CLASSES, greater_is_better=True)
def recall_macro(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the mean of the recall of every class or label."""
    return _macro("recall", y_true, y_pred, skip_undefined)


@metric("labels", "same", CLASSES, greater_is_better=True)
def f1_macro(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the mean of the F1 of every class or label."""
    return _macro("f1", y_true, y_pred, skip_undefined)


@metric("labels", "same", CLASSES, greater_is_better=True)
def precision_micro(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the precision over all entries of all labels; the accuracy for exclusive classes."""
    return _micro("precision", y_true, y_pred)


@metric("labels", "same", CLASSES, greater_is_better=True)
def recall_micro(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the recall over all entries of all labels; the accuracy for exclusive classes."""
    return _micro("recall", y_true, y_pred)


@metric("labels", "same", CLASSES, greater_is_better=True)
def f1_micro(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return F1 over all entries of all labels; the accuracy for exclusive classes."""
    return _micro("f1", y_true, y_pred)


@metric("labels", "columns", MULTILABEL, greater_is_better=True)
def precision_samples(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean of the precision of every row."""
    return _samples("precision", y_true, y_pred)


@metric("labels", "columns", MULTILABEL, greater_is_better=True)
def recall_samples(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean of the recall of every row."""
    return _samples("recall", y_true, y_pred)


@metric("labels", "columns", MULTILABEL, greater_is_better=True)
def f1_samples(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean of the F1 of every row."""
    return _samples("f1", y_true, y_pred)


def _score(score: Score, y_true: np.ndarray, y_pred: np.ndarray, **options: Any) -> float:
    return float(getattr(sklearn_metrics(), f"{score}_score")(y_true, y_pred, zero_division=0, **options))


def _binary(score: Score, y_true: np.ndarray, y_pred: np.ndarray, pos_label: Any) -> float:
    y_true = positives(score, "y_true", y_true, pos_label)
    y_pred = positives(score, "y_pred", y_pred, pos_label)
    if score == "precision" and not y_pred.any():
        raise Undefined("nothing is predicted positive")
    if score == "recall" and not y_true.any():
        raise Undefined("there is no positive")
    if not y_true.any() and not y_pred.any():
        raise Undefined("there is no positive and none is predicted")
    return _score(score, y_true, y_pred)


def _macro(score: Score, y_true: np.ndarray, y_pred: np.ndarray, skip_undefined: bool) -> float:
    if y_true.ndim == 1:  # the classes that occur on either side
        return _score(score, y_true, y_pred, average="macro")

    def of_label(column_true: np.ndarray, column_pred: np.ndarray) -> float:
        if not column_true.any() and not column_pred.any():
            raise Undefined("no positive and none predicted")
        return _score(score, column_true, column_pred)

    return column_mean(binary_columns(f"{score}_macro", y_true, y_pred, None), of_label, skip_undefined)


def _micro(score: Score, y_true: np.ndarray, y_pred: np.ndarray) -> float:
    if y_true.ndim == 1:
        return _score(score, y_true, y_pred, average="micro")
    columns = binary_columns(f"{score}_micro", y_true, y_pred, None)
    return _binary(score, np.concatenate([true for true, _ in columns]), np.concatenate([p for _, p in columns]), None)


def _samples(score: Score, y_true: np.ndarray, y_pred: np.ndarray) -> float:
    refuse_masked(f"{score}_samples", y_true)
    empty = (y_true == 0).all(axis=1) & (y_pred == 0).all(axis=1)  # (N,)
    if empty.all():
        return 1.0
    rest = _score(score, y_true[~empty], y_pred[~empty], average="samples")
    return float((rest * (~empty).sum() + empty.sum()) / len(empty))
