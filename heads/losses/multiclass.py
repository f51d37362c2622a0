"""Losses on logits (…, C) of exclusive classes, targets (…) of class indices. Rows of `ignore_index` are masked.

A label outside 0 … C−1 that is not `ignore_index` gives NaN, loss and gradient, where torch raises.
"""

from __future__ import annotations

import mlx.core as mx

from heads.losses.reduction import Reduction, Weights, as_weights, check_range, class_targets, poison, reduce


def cross_entropy(
    logits: mx.array,
    targets: mx.array,
    *,
    weight: Weights | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> mx.array:
    """Softmax cross-entropy; equals torch `cross_entropy`.

    `weight` (C,) are class weights; the mean then divides by Σ w_y over the rows not ignored, the smoothed part too.
    All rows ignored: 0 with a zero gradient (torch: NaN). Raises `HeadError` for wrong shapes or non-integer targets.
    """
    where = "cross_entropy"
    check_range(where, "label_smoothing", label_smoothing, 0, 1)
    logits, labels, keep = _prepare(where, logits, targets, ignore_index)
    if labels.size == 0:  # mx.logsumexp takes no empty array
        return reduce(where, mx.zeros(labels.shape), reduction)
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)  # (…, C)
    weights = _class_weights(where, weight, logits.shape[-1])
    row_weight = weights[labels] * keep  # (…)
    losses = -row_weight * _pick(log_probs, labels)
    if label_smoothing:
        smooth = -(log_probs * weights).sum(axis=-1) / logits.shape[-1] * keep
        losses = (1 - label_smoothing) * losses + label_smoothing * smooth
    return reduce(where, losses, reduction, row_weight.sum())


def softmax_focal(
    logits: mx.array,
    targets: mx.array,
    *,
    gamma: float = 2.0,
    weight: Weights | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> mx.array:
    """Focal loss w_y (1 − p_y)^γ (−log p_y), Lin et al. 2017 with a softmax.

    γ = 0 is `cross_entropy`, and as there the mean divides by Σ w_y. The gradient is finite for every γ where p_y
    rounds to 1.
    """
    where = "softmax_focal"
    check_range(where, "gamma", gamma, 0, float("inf"))
    logits, labels, keep = _prepare(where, logits, targets, ignore_index)
    if labels.size == 0:
        return reduce(where, mx.zeros(labels.shape), reduction)
    total = mx.logsumexp(logits, axis=-1)  # (…)
    is_label = mx.arange(logits.shape[-1]) == labels[..., None]  # (…, C)
    # log(1 − p_y) as the log of the other classes' sum, never 1 − p_y, which is 0 where p_y rounds to 1.
    others = mx.logsumexp(mx.where(is_label, -1e30, logits), axis=-1) - total
    row_weight = _class_weights(where, weight, logits.shape[-1])[labels] * keep
    losses = row_weight * mx.exp(gamma * others) * (total - _pick(logits, labels))
    return reduce(where, losses, reduction, row_weight.sum())


def _prepare(
    where: str, logits: mx.array, targets: mx.array, ignore_index: int
) -> tuple[mx.array, mx.array, mx.array]:
    """float32 logits (0 in ignored rows, NaN in rows with an impossible label), labels safe to index by, kept rows."""
    labels = class_targets(where, logits, targets)
    keep = labels != ignore_index
    classes = logits.shape[-1]
    invalid = keep & ((labels < 0) | (labels >= classes))
    logits = mx.where(keep[..., None], logits.astype(mx.float32), 0)
    return poison(logits, invalid), mx.clip(mx.where(keep, labels, 0), 0, classes - 1), keep


def _class_weights(where: str, weight: Weights | None, classes: int) -> mx.array:
    return mx.ones(classes) if weight is None else as_weights(where, "weight", weight, [(classes,)])


def _pick(values: mx.array, labels: mx.array) -> mx.array:
    return mx.take_along_axis(values, labels[..., None], axis=-1).squeeze(-1)
