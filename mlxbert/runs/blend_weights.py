"""How much each of several predictions counts in their mean: ensemble selection on out-of-fold rows.

Caruana et al. 2004, "Ensemble selection from libraries of models": begin with nothing, and again and again add the
one, already chosen or not, that improves the mean most. It works for any metric, never weighs below 0, and leaves out
what does not help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from heads.metrics import Metric
from heads.thresholds import best_threshold
from mlxbert.training.predictions import Predictions, average

_ROUNDS = 60


def selected_weights(
    truth: np.ndarray, parts: Sequence[Predictions], metric: Metric, rounds: int = _ROUNDS
) -> np.ndarray:
    """Weights (parts,) that sum to 1, each a multiple of 1 / (number of additions).

    Args:
        truth: (N, …) as `Head.metric_targets` gives it.
        parts: predictions for these N rows.
        metric: to optimize; of labels of two classes, at the threshold that is best for each candidate.
        rounds: additions; the best mean on the way is taken.
    """
    score = _scorer(truth, metric)
    counts = np.zeros(len(parts))
    total: np.ndarray | None = None
    best_counts, best = counts, -np.inf
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
    truth: np.ndarray, parts: Sequence[Predictions], folds: np.ndarray, metric: Metric
) -> Predictions:
    """The blend of each fold's rows with weights, and a threshold, that the other folds' rows have chosen."""
    values = np.empty_like(parts[0].values)
    thresholds = np.full(len(truth), 0.5)
    for number in np.unique(folds):
        mine, others = folds == number, folds != number
        if not others.any():
            return average(parts)
        weights = selected_weights(truth[others], [part[others] for part in parts], metric)
        values[mine] = average([part[mine] for part in parts], weights).values
        thresholds[mine] = decision_threshold(
            truth[others], average([part[others] for part in parts], weights), metric
        )
    binary = parts[0].task == "binary"
    return Predictions(parts[0].task, values, thresholds if binary else None)


def decision_threshold(truth: np.ndarray, predictions: Predictions, metric: Metric) -> float:
    """The probability from which on a row counts as positive; one half where nothing is to be decided."""
    if predictions.task != "binary" or metric.needs != "labels" or len(np.unique(truth)) < 2:
        return 0.5
    return best_threshold(predictions.values, truth, metric.name, "blend")


def _scorer(truth: np.ndarray, metric: Metric) -> Callable[[Predictions], float]:
    """Higher is better; undefined is the worst."""
    sign = 1.0 if metric.greater_is_better else -1.0

    def score(predictions: Predictions) -> float:
        threshold = decision_threshold(truth, predictions, metric)
        thresholds = np.full(len(truth), threshold) if predictions.task == "binary" else None
        decided = Predictions(predictions.task, predictions.values, thresholds)
        value = sign * float(metric.function(truth, decided.outputs(metric.needs)))
        return value if value == value else -np.inf

    return score
