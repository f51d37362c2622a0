"""The probability from which on a row counts as positive, chosen on held-out rows for a metric."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from heads.errors import HeadError, unknown_name
from heads.host import Float

# Between how many held-out probabilities a threshold is tried; more of them are thinned to evenly spaced ranks.
CANDIDATES = 500


def best_threshold(probabilities: Float, targets: np.ndarray, metric: str, what: str) -> float:
    """The threshold t in [0, 1] for which `probabilities >= t` is best by `metric`.

    Candidates lie halfway between neighbouring held-out probabilities, where no row's rounding decides; 0.5 is one
    too. Of equally good ones the one closest to 0.5 is taken.

    Args:
        probabilities: (N,).
        targets: (N,) of 0 and 1.
        metric: a name in `heads.metrics.METRICS` that compares labels.

    Raises:
        HeadError: an unknown metric, one that has no threshold, or one that no threshold makes defined.
    """
    score = label_metric(metric, what)
    candidates = _candidates(probabilities)
    with warnings.catch_warnings():
        # Calling everything positive is a candidate, for which some metrics are undefined: it just loses.
        warnings.simplefilter("ignore")
        if metric in _OF_COUNTS and len(np.unique(targets)) == 2:  # of one class alone each metric has its own idea
            values = _of_counts(metric, probabilities, targets, candidates)
        else:
            values = np.array([score(targets, (probabilities >= t).astype(np.int32)) for t in candidates])
    if np.isnan(values).all():
        raise HeadError(f"{what}: {metric} is undefined on the held-out rows at every threshold; fix: use more rows")
    best = np.flatnonzero(values >= np.nanmax(values) - 1e-12)
    return float(candidates[best[np.abs(candidates[best] - 0.5).argmin()]])


def label_metric(metric: str, what: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """The metric as a function of (y_true, y_pred) of which higher is better.

    Raises:
        HeadError: an unknown metric, or one that needs no threshold.
    """
    from heads.metrics import METRICS

    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    found = METRICS[metric]
    if found.needs != "labels":
        raise HeadError(
            f"{what}: {metric} reads {found.needs}, so no threshold changes it; fix: a metric of labels, such as f1"
        )
    sign = 1.0 if found.greater_is_better else -1.0
    return lambda y_true, y_pred: sign * float(found.function(y_true, y_pred))


def threshold_metric(metric: str) -> str:
    """Return the metric that a decision threshold is fitted for when `metric` is optimized.

    That is `metric` itself if it compares labels. Metrics of order and of probabilities (AUC, log loss) have no
    threshold, but labels may be written all the same: F1 then decides, because one half is far from it wherever one
    class is rare.

    Raises:
        HeadError: an unknown metric.
    """
    from heads.metrics import METRICS

    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    return metric if METRICS[metric].needs == "labels" else "f1"


Counts = np.ndarray
# Of true and false positives, false and true negatives: what scikit-learn computes, for all candidates at once; 500
# calls of its functions take a second, and a fold's evaluation asks six times for each label.
_OF_COUNTS: dict[str, Callable[[Counts, Counts, Counts, Counts], Counts]] = {
    "accuracy": lambda tp, fp, fn, tn: (tp + tn) / (tp + fp + fn + tn),
    "balanced_accuracy": lambda tp, fp, fn, tn: (tp / (tp + fn) + tn / (tn + fp)) / 2,
    "f1": lambda tp, fp, fn, tn: 2 * tp / (2 * tp + fp + fn),
    "mcc": lambda tp, fp, fn, tn: (
        (tp * tn - fp * fn) / np.sqrt(np.maximum((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn), 1))
    ),
}


def _of_counts(metric: str, probabilities: Float, targets: np.ndarray, candidates: Float) -> Float:
    """The metric at every candidate, (candidates,)."""
    positive = np.sort(probabilities[targets == 1])
    negative = np.sort(probabilities[targets != 1])
    tp = (len(positive) - np.searchsorted(positive, candidates)).astype(np.float64)
    fp = (len(negative) - np.searchsorted(negative, candidates)).astype(np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(_OF_COUNTS[metric](tp, fp, len(positive) - tp, len(negative) - fp))


def _candidates(probabilities: Float) -> Float:
    distinct = np.unique(probabilities)
    if len(distinct) > CANDIDATES:
        distinct = distinct[np.linspace(0, len(distinct) - 1, CANDIDATES).round().astype(int)]
    middles = (distinct[1:] + distinct[:-1]) / 2
    # Two neighbouring floats have no number between them: the middle is then the upper one, which >= still includes.
    return np.unique(np.concatenate([[0.5], middles, [distinct[0] / 2, (1 + distinct[-1]) / 2]]))
