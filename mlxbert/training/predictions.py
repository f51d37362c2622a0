"""`Predictions`: rows' probabilities or numbers, and the thresholds that make labels of them, whoever made them.

Averaging members, scoring out-of-fold rows, blending runs and writing a submission all work on these: what a metric or
a file format needs is derived here, by the competition type alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import Head
from mlxbert.errors import MLXBertError

CLASSES = ("binary", "multiclass", "ordinal")
NUMBERS = ("regression", "time_series")


class PredictionError(MLXBertError):
    """Predictions that cannot be made, or not be put together."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What is predicted for N rows.

    Attributes:
        task: the competition type.
        values: P(positive) (N,) of "binary"; P(class) (N, C) of "multiclass" and "ordinal"; P(label) (N, L) of
            "multilabel"; numbers in the user's units, (N,) or (N, T), of the others.
        thresholds: from which probability on a row counts as positive: (N,) of "binary", (N, L) of "multilabel";
            None: one half.
    """

    task: str
    values: np.ndarray
    thresholds: np.ndarray | None = None

    @classmethod
    def of(cls, task: str, head: Head, logits: Any) -> Predictions:
        """A head's predictions for logits (N, outputs), with its temperature and thresholds."""
        if task in NUMBERS:
            return cls(task, np.asarray(head.predict(logits)))
        values = np.asarray(head.outputs(logits, "probabilities"))
        # Classes are decided by the most probable or the median one; ordinal heads call something else a threshold.
        own = {"binary": "threshold", "multilabel": "thresholds"}.get(task)
        decided = None if own is None else getattr(head, own, None)
        return cls(task, values, None if decided is None else np.broadcast_to(decided, values.shape))

    def __len__(self) -> int:
        return len(self.values)

    def outputs(self, needs: str) -> np.ndarray:
        """What a metric compares with the truth: see `heads.base.Head.outputs`."""
        ranks = self.task == "ordinal" and needs == "values"  # how far off a rating is
        return self.labels() if needs == "labels" or ranks else self.values

    def labels(self) -> np.ndarray:
        """Decided ones: indices of the classes (N,), 0 and 1 (N, L) of "multilabel".

        Raises:
            PredictionError: numbers are no labels, and ranks have no threshold.
        """
        if self.task in NUMBERS:
            raise PredictionError(f"{self.task} predicts numbers, which are no labels; fix: values='values'")
        if self.task == "multiclass":
            return self.values.argmax(axis=1).astype(np.int32)
        if self.task == "ordinal":
            # The median: how many P(y > k) are above one half, as `OrdinalRegressionHead` decides.
            above = 1.0 - np.cumsum(self.values, axis=1)[:, :-1]
            return (above > 0.5).sum(axis=1).astype(np.int32)
        thresholds = 0.5 if self.thresholds is None else self.thresholds
        return (self.values >= thresholds).astype(np.int32)

    def __getitem__(self, rows: Any) -> Predictions:
        """Some of the rows."""
        thresholds = None if self.thresholds is None else self.thresholds[rows]
        return Predictions(self.task, self.values[rows], thresholds)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """The rows of several, one after the other."""
    thresholds = [part.thresholds for part in parts if part.thresholds is not None]
    return Predictions(
        parts[0].task,
        np.concatenate([part.values for part in parts]),
        np.concatenate(thresholds) if len(thresholds) == len(parts) else None,
    )


def average(parts: Sequence[Predictions], weights: Sequence[float] | np.ndarray | None = None) -> Predictions:
    """The weighted mean of several predictions for the same rows, and of their thresholds.

    Raises:
        PredictionError: they are for other numbers of rows or classes.
    """
    if len({(part.task, part.values.shape) for part in parts}) > 1:
        shapes = " and ".join(sorted({f"{part.task} {part.values.shape}" for part in parts}))
        raise PredictionError(f"predictions of {shapes} cannot be averaged; fix: the same rows and classes")
    if len(parts) == 1:
        return parts[0]
    shares = np.full(len(parts), 1 / len(parts)) if weights is None else np.asarray(weights, np.float64)
    values = sum(share * part.values for share, part in zip(shares, parts, strict=True))
    thresholds = None
    if all(part.thresholds is not None for part in parts):
        thresholds = sum(share * part.thresholds for share, part in zip(shares, parts, strict=True))
    return Predictions(parts[0].task, np.asarray(values), None if thresholds is None else np.asarray(thresholds))


def ranks(predictions: Predictions) -> Predictions:
    """Each column's values as their ranks among the rows, from 0 to 1, equal values at their mean rank; no labels."""
    from scipy.stats import rankdata

    count = len(predictions)
    made = (rankdata(predictions.values, axis=0) - 0.5) / count
    return Predictions(predictions.task, made)
