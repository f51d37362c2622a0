"""Held-out rows judged: their loss, their predictions calibrated without looking at themselves, their metrics.

Temperature and thresholds are learned from a fold's held-out rows and nothing else. A row's own truth must then have
no say in its label, or the score flatters: the held-out rows are dealt into five parts, and each part is decided by
thresholds that the other four have chosen (cross-fitting). The temperature is one number of all of them: it changes no
order, and a temperature a part would mix scales, so that a model that knows nothing scored below one half on few rows.
What a model is saved with is learned from all held-out rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from heads.base import Head
from heads.calibration import threshold_metric
from heads.errors import HeadError, MetricUndefinedWarning
from heads.metrics import METRICS
from heads.multilabel import ThresholdWarning
from mlxbert.training.predictions import NUMBERS, Predictions

_PARTS = 5


def cross_fitted(
    task: str, head: Head, logits: np.ndarray, targets: np.ndarray, metric: str, calibrated: bool = True
) -> Predictions:
    """Held-out predictions (N rows), each part decided by the other parts; the head is left as it was.

    Args:
        task: the competition type.
        head: of the fold.
        logits: (N, outputs) of the fold's held-out rows.
        targets: N, in the user's own values.
        metric: that is optimized.
        calibrated: False: temperature and thresholds as the head has them.
    """
    if task in NUMBERS or not head.fitted or not calibrated:
        return Predictions.of(task, head, logits)
    with _restored(head):
        calibrate(task, head, logits, targets, metric)
        whole, scale = Predictions.of(task, head, logits), _temperature(head)
    if whole.thresholds is None:
        return whole  # no learned number decides anything
    from scipy.special import expit, logit

    part = _parts(targets)
    thresholds = np.array(whole.thresholds)
    for number in range(_PARTS):
        mine, others = np.flatnonzero(part == number), np.flatnonzero(part != number)
        if len(mine):
            with _restored(head):
                calibrate(task, head, logits[others], targets[others], metric)
                learned = Predictions.of(task, head, logits[mine]).thresholds
                assert learned is not None
                # The same logit decides, at whichever temperature its probability is told.
                thresholds[mine] = expit(logit(learned) * (_temperature(head) / scale))
    return Predictions(task, whole.values, thresholds)


def _temperature(head: Head) -> float:
    return float(getattr(head, "temperature", 1.0))


def calibrate(
    task: str,
    head: Head,
    logits: np.ndarray,
    targets: np.ndarray,
    metric: str,
    options: Mapping[str, Any] | None = None,
) -> str | None:
    """Learn temperature and thresholds; why they stay as they are, or None where they were learned.

    Held-out rows of one class teach nothing: that is no reason to lose the training.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ThresholdWarning)
            # One label of many is judged by F1, whatever the metric over all of them.
            own = threshold_metric(metric) if task == "binary" else None
            head.calibrate(logits, targets, metric=own, **(options or {}))
    except HeadError as error:
        return str(error)
    return None


def scores(truth: np.ndarray, predictions: Predictions, metrics: Sequence[str]) -> dict[str, float]:
    """Metric name -> value (nan where it is undefined); `truth` as `Head.metric_targets` gives it."""
    made = {}
    with warnings.catch_warnings():
        # nan says it; a warning at every evaluation of every fold would bury what else is said.
        warnings.simplefilter("ignore", MetricUndefinedWarning)
        for name in metrics:
            metric = METRICS[name]
            made[name] = float(metric.function(truth, predictions.outputs(metric.needs)))
    return made


def row_losses(truth: np.ndarray, predictions: Predictions) -> np.ndarray:
    """How wrong each row is, (N,): −log P(truth), its mean over known labels, or the mean |error|."""
    values = predictions.values
    if predictions.task in NUMBERS:
        return np.abs(values - truth).reshape(len(values), -1).mean(axis=1)
    tiny = np.finfo(np.float64).tiny
    if predictions.task in ("multiclass", "ordinal"):
        return -np.log(np.maximum(values[np.arange(len(values)), truth.astype(int)], tiny))
    right = np.where(truth == 1, values, 1 - values)
    losses = np.where(truth >= 0, -np.log(np.maximum(right, tiny)), 0.0)
    if losses.ndim == 1:
        return losses
    return losses.sum(axis=1) / np.maximum((truth >= 0).sum(axis=1), 1)


def _parts(targets: np.ndarray) -> np.ndarray:
    """The part of each row, (N,); classes are spread over them."""
    rng = np.random.default_rng(len(targets))
    order = rng.permutation(len(targets))
    if targets.ndim == 1:
        _, codes = np.unique(targets.astype(str) if targets.dtype == object else targets, return_inverse=True)
        order = order[np.argsort(codes[order], kind="stable")]
    part = np.empty(len(targets), np.int64)
    part[order] = np.arange(len(targets)) % _PARTS
    return part


@contextmanager
def _restored(head: Head) -> Iterator[None]:
    saved = {name: getattr(head, name) for name in head.fitted}
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(head, name, value)
