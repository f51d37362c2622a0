"""Values that are fitted on held-out rows: temperature, decision thresholds; and prediction intervals.

Temperature scaling divides logits by one T > 0, so that probabilities agree with frequencies. Guo et al. 2017,
https://arxiv.org/abs/1706.04599. It never changes the most probable class.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.arrays import Float
from heads.checks import check_number
from heads.errors import HeadError
from heads.labels import as_array

# If all held-out rows are right, the best T is 0; if all are wrong, it is infinite: these limits apply instead.
LOWEST, HIGHEST = 0.01, 100.0


def fit_temperature(logits: Float, nll: Callable[[Float], float], what: str) -> float:
    """Return the T in [0.01, 100] that minimizes `nll(logits / T)`.

    The search is over log T, so T > 0 by construction. Negative log-likelihood is convex in 1/T for linear logits
    and a log-partition function, hence has one minimum.

    Raises:
        HeadError: no rows, or logits that are not finite.
    """
    from scipy.optimize import minimize_scalar

    if not len(logits) or not np.isfinite(logits).all():
        problem = "no rows" if not len(logits) else "logits that are not finite"
        raise HeadError(
            f"{what}: a temperature cannot be fitted on {problem}; fix: give held-out logits of a trained model"
        )
    result = minimize_scalar(
        lambda log_t: nll(logits / math.exp(log_t)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    # The search may miss T = 1 by its tolerance: compare with it.
    temperature = math.exp(float(result.x))
    return temperature if nll(logits / temperature) <= nll(logits) else 1.0


def binary_nll(logits: Float, targets: Float) -> float:
    """Return the mean −log P(target) for logits and 0/1 targets of one shape; targets of −1 are left out."""
    keep = targets >= 0
    losses = np.logaddexp(0.0, logits) - logits * targets
    return float(losses[keep].mean())


def multiclass_nll(logits: Float, indices: np.ndarray) -> float:
    """Return the mean −log softmax(logits)[index] over the rows."""
    partition = np.logaddexp.reduce(logits, axis=1)
    return float((partition - logits[np.arange(len(logits)), indices]).mean())


def check_temperature(temperature: float, what: str) -> float:
    """Return `temperature` if it is a finite number above 0.

    Raises:
        HeadError: it is not.
    """
    return check_number(temperature, f"{what}: temperature", 0, open_ends=True)


# The largest number of held-out probabilities between which a threshold is tried; of more, evenly spaced ranks.
CANDIDATES = 500


def best_threshold(probabilities: Float, targets: np.ndarray, metric: str, what: str) -> float:
    """Return the threshold t in [0, 1] for which `probabilities >= t` is best by `metric`.

    Candidates lie halfway between neighbouring held-out probabilities, so that the rounding of a row does not decide;
    0.5 is a candidate, too. Of equally good candidates the one closest to 0.5 is returned.

    Args:
        probabilities: (N,).
        targets: (N,) of 0 and 1.
        metric: a name in `heads.metrics.METRICS` that compares labels.

    Raises:
        HeadError: an unknown metric, a metric that has no threshold, or one that is undefined at every threshold.
    """
    from heads.metrics import get_metric

    entry = get_metric(metric)
    if entry.needs != "labels":
        raise HeadError(
            f"{what}: {metric} reads {entry.needs}, so no threshold changes it; fix: a metric of labels, such as f1"
        )
    sign = 1.0 if entry.greater_is_better else -1.0
    candidates = _candidates(probabilities)
    with warnings.catch_warnings():
        # One candidate makes every row positive, where some metrics are undefined: nan is never the best value.
        warnings.simplefilter("ignore")
        if metric in _OF_COUNTS and len(np.unique(targets)) == 2:  # with one class alone the metrics differ
            values = _of_counts(metric, probabilities, targets, candidates)
        else:
            scores = [entry.function(targets, (probabilities >= t).astype(np.int32)) for t in candidates]
            values = sign * np.array(scores, np.float64)
    if np.isnan(values).all():
        raise HeadError(f"{what}: {metric} is undefined on the held-out rows at every threshold; fix: use more rows")
    best = np.flatnonzero(values >= np.nanmax(values) - 1e-12)
    return float(candidates[best[np.abs(candidates[best] - 0.5).argmin()]])


def threshold_metric(metric: str) -> str:
    """Return the metric that a decision threshold is fitted for when `metric` is optimized.

    That is `metric` itself if it compares labels. Metrics of order and of probabilities (AUC, log loss) have no
    threshold, but labels may be written all the same: then it is F1, because 0.5 is a bad threshold where one class
    is rare.

    Raises:
        HeadError: an unknown metric.
    """
    from heads.metrics import get_metric

    return metric if get_metric(metric).needs == "labels" else "f1"


Counts = np.ndarray
# The metrics as functions of true and false positives, false and true negatives, for all candidates at once: 500 calls
# of scikit-learn's functions take a second, and the evaluation of a fold needs them six times for each label.
_OF_COUNTS: dict[str, Callable[[Counts, Counts, Counts, Counts], Counts]] = {
    "accuracy": lambda tp, fp, fn, tn: (tp + tn) / (tp + fp + fn + tn),
    "balanced_accuracy": lambda tp, fp, fn, tn: (tp / (tp + fn) + tn / (tn + fp)) / 2,
    "f1": lambda tp, fp, fn, tn: 2 * tp / (2 * tp + fp + fn),
    "mcc": lambda tp, fp, fn, tn: (
        (tp * tn - fp * fn) / np.sqrt(np.maximum((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn), 1))
    ),
}


def _of_counts(metric: str, probabilities: Float, targets: np.ndarray, candidates: Float) -> Float:
    """Return the metric at every candidate, (candidates,)."""
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
    # Between two neighbouring floats there is no number: the middle is then the upper one, and >= includes it.
    return np.unique(np.concatenate([[0.5], middles, [distinct[0] / 2, (1 + distinct[-1]) / 2]]))


@dataclass(frozen=True)
class Coverage:
    """How often the true value is inside the interval.

    Attributes:
        level: the share that should be inside.
        observed: the share that is inside.
        mean_width: mean of upper − lower, in the user's units.
        count: number of values compared.
    """

    level: float
    observed: float
    mean_width: float
    count: int

    def __str__(self) -> str:
        return f"{self.observed:.1%} of {self.count} values inside the {self.level:.0%} interval"


@dataclass(frozen=True)
class Interval:
    """Central prediction intervals in the user's units; every array has the shape of the predictions.

    Attributes:
        value: the prediction.
        lower: the lower end of the interval.
        upper: the upper end.
        level: the share of true values that should lie inside.
    """

    value: Float
    lower: Float
    upper: Float
    level: float

    def coverage(self, targets: Any) -> Coverage:
        """Return the share of true values that are inside; `targets` in the user's units and the shape of `value`.

        Raises:
            HeadError: another shape.
        """
        truth = as_array(targets, np.float64, "coverage")
        if truth.shape != self.value.shape:
            raise HeadError(f"coverage: targets have shape {truth.shape}, predictions {self.value.shape}")
        if not truth.size:
            raise HeadError("coverage: no rows to compare")
        inside = (self.lower <= truth) & (truth <= self.upper)
        return Coverage(self.level, float(inside.mean()), float((self.upper - self.lower).mean()), inside.size)


def normal_quantile(level: float, what: str) -> float:
    """Return the z for which a standard normal variable is in ±z with probability `level`.

    Raises:
        HeadError: `level` is not between 0 and 1.
    """
    from scipy.stats import norm

    return float(norm.ppf((1 + check_number(level, f"{what}: level", 0, 1, open_ends=True)) / 2))
