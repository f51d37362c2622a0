"""Losses on ordered ratings 0 … K−1. Rows of `ignore_index` are masked; another label out of range gives NaN."""

from __future__ import annotations

import mlx.core as mx

from heads.errors import HeadError
from heads.losses.reduction import (
    Reduction,
    Weights,
    as_weights,
    check_same_shape,
    class_targets,
    poison,
    reduce,
)


def coral(
    logits: mx.array,
    targets: mx.array,
    *,
    importance: Weights | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> mx.array:
    """CORAL, Cao, Mirjalili and Raschka 2020, https://arxiv.org/abs/1901.07884; equals coral-pytorch's `coral_loss`.

    `logits` (N, K−1): logit k is that of P(y > k). `importance` (K−1,) weights the K−1 questions. The loss of a row is
    the sum over its questions; the mean is over rows.
    """
    logits, labels, keep = _prepare("coral", logits, targets, ignore_index)
    questions = logits.shape[-1]
    losses = _question_losses(logits, labels)  # (N, K−1)
    if importance is not None:
        losses = losses * as_weights("coral", "importance", importance, [(questions,)])
    return reduce("coral", losses.sum(axis=-1) * keep, reduction, keep.sum())


def corn(logits: mx.array, targets: mx.array, *, ignore_index: int = -100, reduction: Reduction = "mean") -> mx.array:
    """CORN, Shi, Cao and Raschka 2021, https://arxiv.org/abs/2111.08851; equals coral-pytorch's `corn_loss` (1.4).

    `logits` (N, K−1): logit k is that of P(y > k | y > k−1), so question k is put to the rows with y ≥ k alone. The
    mean divides by the number of questions put, not by rows or classes; "none" gives each row's sum (N,).
    """
    logits, labels, keep = _prepare("corn", logits, targets, ignore_index)
    asked = (labels[:, None] >= mx.arange(logits.shape[-1])) & keep[:, None]  # (N, K−1)
    losses = mx.where(asked, _question_losses(logits, labels), 0).sum(axis=-1)
    return reduce("corn", losses, reduction, asked.sum())


def cumulative_link(
    scores: mx.array,
    thresholds: mx.array,
    targets: mx.array,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> mx.array:
    """Negative log-likelihood of the proportional-odds model P(y ≤ k) = σ(θ_k − score), McCullagh 1980.

    `scores` (N,), `thresholds` (K−1,) increasing, targets (N,). Equals statsmodels' `OrderedModel(distr="logit")`.
    Thresholds that are equal give inf, in the wrong order NaN: build them so that they are ordered.
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
    """`cumulative_link` of logits (N, K−1) = score − θ_k, those of P(y > k), as CORAL's: they decrease along a row."""
    values = logits.astype(mx.float32)
    gaps = values[..., :-1] - values[..., 1:]
    return _cumulative("cumulative_logits", logits, gaps, targets, ignore_index, reduction)


def _cumulative(
    where: str, logits: mx.array, gaps: mx.array, targets: mx.array, ignore_index: int, reduction: Reduction
) -> mx.array:
    """−log(σ(a) − σ(b)) = softplus(−a) + softplus(b) − log(1 − e^(b−a)), where a, b = θ_y, θ_(y−1) minus the score.

    The difference of two sigmoids has no digits left far from the thresholds; the gap a − b holds no score at all.
    """
    logits, labels, keep = _prepare(where, logits, targets, ignore_index)
    last = logits.shape[-1]  # K−1, the highest rating
    below = labels > 0
    above = labels < last
    rows = mx.arange(labels.size)
    # Where a bound is ±∞ its terms are absent; the values picked there are finite and masked.
    to_upper = mx.logaddexp(logits[rows, mx.minimum(labels, last - 1)], mx.array(0.0))  # softplus(−a)
    to_lower = mx.logaddexp(-logits[rows, mx.maximum(labels - 1, 0)], mx.array(0.0))  # softplus(b)
    losses = mx.where(above, to_upper, 0) + mx.where(below, to_lower, 0)
    if last > 1:
        gaps = mx.broadcast_to(gaps, (labels.size, last - 1))
        gap = gaps[rows, mx.clip(labels - 1, 0, last - 2)]
        losses = losses - mx.log(-mx.expm1(-mx.where(below & above & keep, gap, mx.inf)))
    return reduce(where, losses * keep, reduction, keep.sum())


def _question_losses(logits: mx.array, labels: mx.array) -> mx.array:
    """Binary cross-entropy (N, K−1) of "is the rating above k?"."""
    above = (labels[:, None] > mx.arange(logits.shape[-1])).astype(mx.float32)
    return (1 - above) * logits + mx.logaddexp(-logits, mx.array(0.0))


def _prepare(
    where: str, logits: mx.array, targets: mx.array, ignore_index: int
) -> tuple[mx.array, mx.array, mx.array]:
    """float32 logits (0 in ignored rows, NaN in rows with an impossible label), labels safe to index by, kept rows."""
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise HeadError(f"{where}: logits have shape {logits.shape}; fix: (N, K − 1), one less than there are ratings")
    labels = class_targets(where, logits, targets)
    keep = labels != ignore_index
    highest = logits.shape[1]
    invalid = keep & ((labels < 0) | (labels > highest))
    logits = mx.where(keep[:, None], logits.astype(mx.float32), 0)
    return poison(logits, invalid), mx.clip(mx.where(keep, labels, 0), 0, highest), keep
