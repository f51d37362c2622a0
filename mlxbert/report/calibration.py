"""Reliability: the probabilities against how often what they speak of is so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heads.metrics import ece
from mlxbert.report.predictions import ClassPredictions, LabelPredictions

BINS = 15  # as `heads.metrics.ece`


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram over bins of equal width.

    Attributes:
        rows: (bins,) how many probabilities fall into each.
        probability: (bins,) their mean; NaN in an empty one.
        happened: (bins,) share of those that came true; NaN in an empty one.
        ece: expected calibration error, `heads.metrics.ece`.
        what: the probability, in a sentence.
        unit: of `rows`.
    """

    rows: np.ndarray
    probability: np.ndarray
    happened: np.ndarray
    ece: float
    what: str
    unit: str


def reliability(made: ClassPredictions | LabelPredictions) -> Reliability:
    """Of two classes the positive one's probability, of several the best one's, of labels every known entry's."""
    if isinstance(made, LabelPredictions):
        known = made.truth >= 0
        truth, probability = made.truth[known], made.probability[known]
        what = f"All {known.sum():,} known entries of the {len(made.names)} labels together."
        return _binned(truth, probability, what, "entries")
    if len(made.names) == 2:
        what = f"The predicted probability of class {made.names[1]}."
        return _binned(made.truth, made.probability[:, 1], what, "rows")
    best = made.probability.argmax(axis=1)
    what = "The probability of the likeliest class, against how often that is the true one."
    return _binned((best == made.truth).astype(np.int64), made.probability.max(axis=1), what, "rows")


def _binned(happened: np.ndarray, probability: np.ndarray, what: str, unit: str) -> Reliability:
    bins = np.digitize(probability, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    rows = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights=values, minlength=BINS) / rows for values in (probability, happened)]
    return Reliability(rows, means[0], means[1], ece(happened, probability, n_bins=BINS), what, unit)
