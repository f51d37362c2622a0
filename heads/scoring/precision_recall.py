"""Precision, recall and F1: of the positives (binary), mean over classes or labels (macro), over all entries (micro),
mean over rows (samples).

0/0 is undefined. A class or label that is neither there nor predicted is left out of a macro mean (scikit-learn counts
it 0 and a perfect prediction is then not 1); precision of a class that is there and never predicted counts 0 in a
macro mean, as in scikit-learn, or never predicting the difficult classes would pay. A row without labels for which
none is predicted is right: 1 in a mean over rows.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from heads.scoring.averaging import column_mean
from heads.scoring.definition import CompetitionType, metric, sklearn_metrics
from heads.scoring.inputs import Undefined, binary_columns, positives, refuse_masked

Score = Literal["precision", "recall", "f1"]
BINARY: tuple[CompetitionType, ...] = ("binary",)
CLASSES: tuple[CompetitionType, ...] = ("binary", "multiclass", "multilabel", "ordinal")
MULTILABEL: tuple[CompetitionType, ...] = ("multilabel",)


@metric("labels", "rows", BINARY, greater_is_better=True)
def precision(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Share of the predicted positives that are positive; nan when nothing is predicted positive."""
    return _binary("precision", y_true, y_pred, pos_label)


@metric("labels", "rows", BINARY, greater_is_better=True)
def recall(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Share of the positives that are predicted; nan without a positive."""
    return _binary("recall", y_true, y_pred, pos_label)


@metric("labels", "rows", BINARY, greater_is_better=True)
def f1(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """2 tp / (2 tp + fp + fn); nan when there is no positive and none is predicted."""
    return _binary("f1", y_true, y_pred, pos_label)


@metric("labels", "same", CLASSES, greater_is_better=True)
def precision_macro(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Mean of the precision of every class or label."""
    return _macro("precision", y_true, y_pred, skip_undefined)


@metric("labels", "same", CLASSES, greater_is_better=True)
def recall_macro(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Mean of the recall of every class or label."""
    return _macro("recall", y_true, y_pred, skip_undefined)


@metric("labels", "same", CLASSES, greater_is_better=True)
def f1_macro(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Mean of the F1 of every class or label."""
    return _macro("f1", y_true, y_pred, skip_undefined)


@metric("labels", "same", CLASSES, greater_is_better=True)
def precision_micro(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Precision over all entries of all labels; accuracy for exclusive classes."""
    return _micro("precision", y_true, y_pred)


@metric("labels", "same", CLASSES, greater_is_better=True)
def recall_micro(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Recall over all entries of all labels; accuracy for exclusive classes."""
    return _micro("recall", y_true, y_pred)


@metric("labels", "same", CLASSES, greater_is_better=True)
def f1_micro(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """F1 over all entries of all labels; accuracy for exclusive classes."""
    return _micro("f1", y_true, y_pred)


@metric("labels", "columns", MULTILABEL, greater_is_better=True)
def precision_samples(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Mean of the precision of every row."""
    return _samples("precision", y_true, y_pred)


@metric("labels", "columns", MULTILABEL, greater_is_better=True)
def recall_samples(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Mean of the recall of every row."""
    return _samples("recall", y_true, y_pred)


@metric("labels", "columns", MULTILABEL, greater_is_better=True)
def f1_samples(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Mean of the F1 of every row."""
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
