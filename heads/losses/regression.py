"""Losses of numbers, and of ordered ratings 0 … K−1.

Predictions and targets of numbers have one shape, which is never broadcast. Ratings of `ignore_index` are masked;
another rating out of range gives NaN.
"""

from __future__ import annotations

import math

import mlx.core as mx

from heads.errors import HeadError
from heads.losses.base import (
    Reduction,
    Weights,
    as_weights,
    check_range,
    check_same_shape,
    class_targets,
    poison,
    reduce,
)


def mse(predictions: mx.array, targets: mx.array, *, reduction: Reduction = "mean") -> mx.array:
    """Return the squared error; equals torch `MSELoss`."""
    return reduce("mse", mx.square(_error("mse", predictions, targets)), reduction)


def mae(predictions: mx.array, targets: mx.array, *, reduction: Reduction = "mean") -> mx.array:
    """Return the absolute error; equals torch `L1Loss`."""
    return reduce("mae", mx.abs(_error("mae", predictions, targets)), reduction)


def huber(predictions: mx.array, targets: mx.array, *, delta: float = 1.0, reduction: Reduction = "mean") -> mx.array:
    """Return a loss that is quadratic up to an error of `delta`, then linear; equals torch `HuberLoss`."""
    check_range("huber", "delta", delta, 0, math.inf, open_ends=True)
    error = mx.abs(_error("huber", predictions, targets))
    # min(e, δ) (e − min(e, δ)/2): both pieces at once, without a square that overflows in the piece not taken.
    quadratic = mx.minimum(error, delta)
    return reduce("huber", quadratic * (error - quadratic / 2), reduction)


def gaussian_nll(
    mean: mx.array,
    variance: mx.array,
    targets: mx.array,
    *,
    full: bool = False,
    eps: float = 1e-6,
    reduction: Reduction = "mean",
) -> mx.array:
    """Return ½ (log σ² + (y − μ)²/σ²), and ½ log 2π with `full`; equals torch `GaussianNLLLoss`.

    As there, a variance below `eps` counts as `eps` while its gradient passes, so that it can grow again. A negative
    variance gives NaN (torch raises).
    """
    check_range("gaussian_nll", "eps", eps, 0, math.inf, open_ends=True)
    check_same_shape("gaussian_nll", mean=mean, variance=variance, targets=targets)
    error = _error("gaussian_nll", mean, targets)
    variance = variance.astype(mx.float32)
    clamped = mx.where(variance < 0, mx.nan, mx.maximum(variance, eps))
    variance = variance + mx.stop_gradient(clamped - variance)
    losses = 0.5 * (mx.log(variance) + mx.square(error) / variance)
    return reduce("gaussian_nll", losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


def pinball(predictions: mx.array, targets: mx.array, *, quantile: float, reduction: Reduction = "mean") -> mx.array:
    """Return max(q e, (q − 1) e) of e = y − prediction, the quantile loss; as scikit-learn's `mean_pinball_loss`."""
    check_range("pinball", "quantile", quantile, 0, 1, open_ends=True)
    error = -_error("pinball", predictions, targets)
    return reduce("pinball", mx.maximum(quantile * error, (quantile - 1) * error), reduction)


def _error(where: str, predictions: mx.array, targets: mx.array) -> mx.array:
    check_same_shape(where, predictions=predictions, targets=targets)
    return predictions.astype(mx.float32) - targets.astype(mx.float32)


def coral(
    logits: mx.array,
    targets: mx.array,
    *,
    importance: Weights | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> mx.array:
    """Return the CORAL loss, https://arxiv.org/abs/1901.07884; equals coral-pytorch's `coral_loss`.

    Cao, Mirjalili and Raschka 2020. `logits` (N, K−1): logit k is the logit of P(y > k). `importance` (K−1,) weights
    the K−1 questions "is y above k?". The loss of a row is the sum over its questions; the mean is over rows.
    """
    logits, labels, keep = _prepare_ratings("coral", logits, targets, ignore_index)
    questions = logits.shape[-1]
    losses = _question_losses(logits, labels)  # (N, K−1)
    if importance is not None:
        losses = losses * as_weights("coral", "importance", importance, [(questions,)])
    return reduce("coral", losses.sum(axis=-1) * keep, reduction, keep.sum())


def corn(logits: mx.array, targets: mx.array, *, ignore_index: int = -100, reduction: Reduction = "mean") -> mx.array:
    """Return the CORN loss, https://arxiv.org/abs/2111.08851; equals coral-pytorch's `corn_loss` (1.4).

    Shi, Cao and Raschka 2021. `logits` (N, K−1): logit k is the logit of P(y > k | y > k−1), so that question k is for
    the rows with y ≥ k only. The mean divides by the number of questions, not of rows or classes; "none" returns each
    row's sum (N,).
    """
    logits, labels, keep = _prepare_ratings("corn", logits, targets, ignore_index)
    questions = (labels[:, None] >= mx.arange(logits.shape[-1])) & keep[:, None]  # (N, K−1)
    losses = mx.where(questions, _question_losses(logits, labels), 0).sum(axis=-1)
    return reduce("corn", losses, reduction, questions.sum())


def cumulative_link(
    scores: mx.array,
    thresholds: mx.array,
    targets: mx.array,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> mx.array:
    """Return the negative log-likelihood of the proportional-odds model P(y ≤ k) = σ(θ_k − score), McCullagh 1980.

    `scores` (N,), `thresholds` (K−1,) increasing, targets (N,). Equals statsmodels' `OrderedModel(distr="logit")`.
    Equal thresholds give inf, thresholds in the wrong order NaN.
    """
    where = "cumulative_link"
    check_same_shape(where, scores=scores, targets=targets)
    if thresholds.ndim != 1 or scores.ndim != 1 or thresholds.size == 0:
        raise HeadError(
            f"{where}: scores {scores.shape} and thresholds {thresholds.shape}; fix: scores (N,), thresholds (K − 1,)"
        )
    thresholds = thresholds.astype(mx.float32)
    logits = scores.astype(mx.float32)[:, None] - thresholds  # (N, K−1)
    return _cumulative(where, logits, thresholds[1:] - thresholds[:-1], targets, ignore_index, reduction)


def cumulative_logits(
    logits: mx.array, targets: mx.array, *, ignore_index: int = -100, reduction: Reduction = "mean"
) -> mx.array:
    """Return `cumulative_link` of logits (N, K−1) = score − θ_k of P(y > k), which decrease along a row."""
    values = logits.astype(mx.float32)
    gaps = values[..., :-1] - values[..., 1:]
    return _cumulative("cumulative_logits", logits, gaps, targets, ignore_index, reduction)


def _cumulative(
    where: str, logits: mx.array, gaps: mx.array, targets: mx.array, ignore_index: int, reduction: Reduction
) -> mx.array:
    """Return −log(σ(a) − σ(b)) = softplus(−a) + softplus(b) − log(1 − e^(b−a)), where a, b = θ_y, θ_(y−1) − score.

    The difference of two sigmoids loses all digits far from the thresholds; the gap a − b does not contain the score.
    """
    logits, labels, keep = _prepare_ratings(where, logits, targets, ignore_index)
    last = logits.shape[-1]  # K−1, the highest rating
    below = labels > 0
    above = labels < last
    rows = mx.arange(labels.size)
    # The terms of a bound of ±∞ are absent; the values that are taken there are finite and masked.
    to_upper = mx.logaddexp(logits[rows, mx.minimum(labels, last - 1)], mx.array(0.0))  # softplus(−a)
    to_lower = mx.logaddexp(-logits[rows, mx.maximum(labels - 1, 0)], mx.array(0.0))  # softplus(b)
    losses = mx.where(above, to_upper, 0) + mx.where(below, to_lower, 0)
    if last > 1:
        gaps = mx.broadcast_to(gaps, (labels.size, last - 1))
        gap = gaps[rows, mx.clip(labels - 1, 0, last - 2)]
        losses = losses - mx.log(-mx.expm1(-mx.where(below & above & keep, gap, mx.inf)))
    return reduce(where, losses * keep, reduction, keep.sum())


def _question_losses(logits: mx.array, labels: mx.array) -> mx.array:
    """Return the binary cross-entropy (N, K−1) of "is the rating above k?"."""
    above = (labels[:, None] > mx.arange(logits.shape[-1])).astype(mx.float32)
    return (1 - above) * logits + mx.logaddexp(-logits, mx.array(0.0))


def _prepare_ratings(
    where: str, logits: mx.array, targets: mx.array, ignore_index: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Return float32 logits (0 in ignored rows, NaN for impossible labels), labels safe as an index, kept rows."""
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise HeadError(f"{where}: logits have shape {logits.shape}; fix: (N, K − 1), one less than there are ratings")
    labels = class_targets(where, logits, targets)
    keep = labels != ignore_index
    highest = logits.shape[1]
    invalid = keep & ((labels < 0) | (labels > highest))
    logits = mx.where(keep[:, None], logits.astype(mx.float32), 0)
    return poison(logits, invalid), mx.clip(mx.where(keep, labels, 0), 0, highest), keep
