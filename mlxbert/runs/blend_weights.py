"""How much each of several predictions counts in their mean: ensemble selection on out-of-fold rows.

Caruana et al. 2004, "Ensemble selection from libraries of models": begin with nothing, and again and again add the
one, already chosen or not, that improves the mean most. It works for any metric, never weighs below 0, and leaves out
what does not help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from heads.calibration import best_threshold, threshold_metric
from heads.metrics import Metric
from mlxbert.training.predictions import Predictions, average

_ROUNDS = 60
# What the rows of one fold are dealt into, so that none has a say in its own weights and threshold.
_PARTS = 5


def selected_weights(
    truth: np.ndarray, parts: Sequence[Predictions], metric: Metric, rounds: int = _ROUNDS
) -> np.ndarray:
    """Weights (parts,) that sum to 1, each a multiple of 1 / (number of additions); equal where no score is defined.

    Args:
        truth: (N, …) as `Head.metric_targets` gives it.
        parts: predictions for these N rows.
        metric: to optimize; of labels of two classes, at the threshold that is best for each candidate, and so for
            each of many labels.
        rounds: additions; the best mean on the way is taken.
    """
    score = _scorer(truth, metric)
    counts = np.zeros(len(parts))
    total: np.ndarray | None = None
    best_counts, best = np.ones(len(parts)), -np.inf
    for done in range(rounds):
        candidates = []
        for part in parts:
            values = part.values if total is None else (total * done + part.values) / (done + 1)
            candidates.append((score(Predictions(part.task, values)), values))
        chosen = int(np.argmax([value for value, _ in candidates]))
        value, total = candidates[chosen]
        counts = counts + np.eye(len(parts))[chosen]
        if value > best + 1e-12:
            best_counts, best = counts, value
        elif done - best_counts.sum() > 2 * len(parts) + 10:
            break
    return np.asarray(best_counts / best_counts.sum())


def cross_fitted_blend(
    truth: np.ndarray,
    parts: Sequence[Predictions],
    folds: np.ndarray,
    metric: Metric,
    deciding: Metric | None = None,
) -> Predictions:
    """The blend of each fold's rows with weights, and thresholds, that the other folds' rows have chosen.

    The rows of one fold alone are dealt into five parts in place of folds.

    Args:
        truth: (N, …) as `Head.metric_targets` gives it.
        parts: predictions for these N rows.
        folds: (N,) their fold.
        metric: that the weights optimize.
        deciding: that the threshold of two classes is learned for (`decision_thresholds`); None: `metric`.
    """
    if len(np.unique(folds)) == 1:
        folds = np.random.default_rng(len(truth)).permutation(len(truth)) % _PARTS
    values = np.empty_like(parts[0].values)
    thresholds = np.full(values.shape, 0.5)
    for number in np.unique(folds):
        mine, others = folds == number, folds != number
        if not others.any():
            return average(parts)
        weights = selected_weights(truth[others], [part[others] for part in parts], metric)
        values[mine] = average([part[mine] for part in parts], weights).values
        learned = average([part[others] for part in parts], weights)
        found = decision_thresholds(truth[others], learned, deciding or metric)
        if found is not None:
            thresholds[mine] = found
    labelled = parts[0].task in ("binary", "multilabel")
    return Predictions(parts[0].task, values, thresholds if labelled else None)


def decision_thresholds(truth: np.ndarray, predictions: Predictions, metric: Metric) -> np.ndarray | None:
    """The probability from which on a row counts as positive: () of "binary", (L,) of "multilabel"; else None.

    For "binary" it is fitted for `metric`, or for F1 if that reads no labels (`heads.calibration.threshold_metric`);
    one label of many is judged by F1, whatever the metric over all of them (`MultilabelClassificationHead`). Rows of
    one class teach nothing: one half.
    """
    values = predictions.values
    if predictions.task == "binary":
        return np.array(_best(values, truth, threshold_metric(metric.name)))
    if predictions.task == "multilabel":
        return np.array([_best(*pair, "f1") for pair in zip(values.T, truth.T, strict=True)])
    return None


def decided(predictions: Predictions, thresholds: np.ndarray | None) -> Predictions:
    """The same values, labelled at these thresholds of `decision_thresholds`; None: at one half."""
    shape = predictions.values.shape
    own = None if thresholds is None else np.broadcast_to(thresholds, shape)
    return Predictions(predictions.task, predictions.values, own)


def _best(values: np.ndarray, truth: np.ndarray, metric: str) -> float:
    known = truth >= 0  # −1 is an unknown label
    if len(np.unique(truth[known])) < 2:
        return 0.5
    return best_threshold(values[known], truth[known], metric, "blend")


def _scorer(truth: np.ndarray, metric: Metric) -> Callable[[Predictions], float]:
    """Higher is better; undefined is the worst."""
    sign = 1.0 if metric.greater_is_better else -1.0

    def score(predictions: Predictions) -> float:
        thresholds = decision_thresholds(truth, predictions, metric) if metric.needs == "labels" else None
        outputs = decided(predictions, thresholds).outputs(metric.needs)
        value = sign * float(metric.function(truth, outputs))
        return value if value == value else -np.inf

    return score
