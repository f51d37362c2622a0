"""Losses of classes: of independent yes/no logits, and of exclusive classes. Entries of `ignore_index` are masked.

`bce_with_logits`, `sigmoid_focal` and `asymmetric` take binary (N,) or multilabel (N, L) logits; `cross_entropy` and
`softmax_focal` take logits (…, C) and class indices (…). A label outside 0 … C−1 that is not `ignore_index` gives NaN,
loss and gradient, where torch raises.
"""

from __future__ import annotations

import mlx.core as mx

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

# The smallest normal float32. Powers below 1 have an infinite slope at 0; from here down, the slope is set to 0.
TINY = 1.1754944e-38


def bce_with_logits(
    logits: mx.array,
    targets: mx.array,
    *,
    pos_weight: Weights | None = None,
    weight: Weights | None = None,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    reduction: Reduction = "mean",
) -> mx.array:
    """Return the binary cross-entropy; equals torch `BCEWithLogitsLoss`.

    `logits` and `targets` (in [0, 1]) have one shape. `pos_weight` multiplies the positives' term: a number or (L,).
    `weight` multiplies the loss: a number, (L,), (N, 1) or the shape of the logits; as in torch, the mean does not
    divide by it. `label_smoothing` ε makes targets y(1 − ε) + ε/2. The mean is over the entries not ignored.
    Raises `HeadError` for other shapes.
    """
    where = "bce_with_logits"
    check_range(where, "label_smoothing", label_smoothing, 0, 1)
    logits, targets, keep = _prepare_bits(where, logits, targets, ignore_index)
    targets = targets * (1 - label_smoothing) + label_smoothing / 2
    per_label = [(), (1,), *([logits.shape[-1:]] if logits.ndim > 1 else [])]
    positive = _softplus(-logits)  # −log σ(z)
    if pos_weight is not None:
        positive = positive * (1 + targets * (as_weights(where, "pos_weight", pos_weight, per_label) - 1))
    losses = (1 - targets) * logits + positive
    if weight is not None:
        shapes = [*per_label, (*logits.shape[:-1], 1), logits.shape]
        losses = losses * as_weights(where, "weight", weight, shapes if logits.ndim > 1 else [(), (1,), logits.shape])
    return reduce(where, mx.where(keep, losses, 0), reduction, keep.sum())


def sigmoid_focal(
    logits: mx.array,
    targets: mx.array,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    ignore_index: float | None = None,
    reduction: Reduction = "mean",
) -> mx.array:
    """Return the focal loss α_t (1 − p_t)^γ BCE, Lin et al. 2017, https://arxiv.org/abs/1708.02002.

    The formula of torchvision's `sigmoid_focal_loss`: α weights the positives, 1 − α the negatives; None (there: a
    negative number) weights nothing. Unlike there, the gradient is finite for 0 < γ < 1 where p_t rounds to 1.
    """
    where = "sigmoid_focal"
    check_range(where, "gamma", gamma, 0, float("inf"))
    logits, targets, keep = _prepare_bits(where, logits, targets, ignore_index)
    cross_entropy = (1 - targets) * logits + _softplus(-logits)
    # 1 − p_t from both tails: subtracting p_t from 1 would lose all digits where it matters.
    missing = targets * mx.sigmoid(-logits) + (1 - targets) * mx.sigmoid(logits)
    losses = cross_entropy * _power(missing, gamma)
    if alpha is not None:
        check_range(where, "alpha", alpha, 0, 1)
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    return reduce(where, mx.where(keep, losses, 0), reduction, keep.sum())


def asymmetric(
    logits: mx.array,
    targets: mx.array,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    ignore_index: float | None = None,
    reduction: Reduction = "mean",
) -> mx.array:
    """Return the asymmetric loss (ASL), Ridnik et al. 2020, https://arxiv.org/abs/2009.14119, equations 4 to 6.

    Positives: −(1 − p)^γ₊ log p. Negatives: −p_m^γ₋ log(1 − p_m) with p_m = max(p − clip, 0). The gradient is that of
    the whole formula (the authors' code has a switch that holds the focusing factors constant).
    """
    where = "asymmetric"
    check_range(where, "gamma_neg", gamma_neg, 0, float("inf"))
    check_range(where, "gamma_pos", gamma_pos, 0, float("inf"))
    check_range(where, "clip", clip, 0, 0.5)
    logits, targets, keep = _prepare_bits(where, logits, targets, ignore_index)
    positive = _softplus(-logits) * _power(mx.sigmoid(-logits), gamma_pos)
    shifted = mx.maximum(mx.sigmoid(logits) - clip, 0)  # p_m, at most 1 − clip
    # Without a margin p_m reaches 1, and only the softplus form of −log(1 − p) stays finite.
    negative_log = _softplus(logits) if clip == 0 else -mx.log1p(-shifted)
    losses = targets * positive + (1 - targets) * negative_log * _power(shifted, gamma_neg)
    return reduce(where, mx.where(keep, losses, 0), reduction, keep.sum())


def _prepare_bits(
    where: str, logits: mx.array, targets: mx.array, ignore_index: float | None
) -> tuple[mx.array, mx.array, mx.array]:
    """Return logits and targets in float32, with 0 in ignored entries against their gradient, and the kept entries.

    A target outside [0, 1] that is not ignored becomes NaN.
    """
    check_same_shape(where, logits=logits, targets=targets)
    logits, targets = logits.astype(mx.float32), targets.astype(mx.float32)
    keep = mx.ones_like(targets, dtype=mx.bool_) if ignore_index is None else targets != ignore_index
    # NaN, because a compiled step cannot refuse a value.
    targets = mx.where((targets < 0) | (targets > 1), mx.nan, targets)
    return mx.where(keep, logits, 0), mx.where(keep, targets, 0), keep


def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, mx.array(0.0))


def _power(base: mx.array, exponent: float) -> mx.array:
    """Return base ** exponent for base ≥ 0, with a finite gradient at 0."""
    return mx.power(mx.maximum(base, TINY), exponent) if exponent else mx.ones_like(base)


def cross_entropy(
    logits: mx.array,
    targets: mx.array,
    *,
    weight: Weights | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> mx.array:
    """Return the softmax cross-entropy; equals torch `cross_entropy`.

    `weight` (C,) are class weights; the mean then divides by Σ w_y over the rows not ignored, the smoothed part too.
    All rows ignored: 0 with a zero gradient (torch: NaN). Raises `HeadError` for wrong shapes or non-integer targets.
    """
    where = "cross_entropy"
    check_range(where, "label_smoothing", label_smoothing, 0, 1)
    logits, labels, keep = _prepare_classes(where, logits, targets, ignore_index)
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
    """Return the focal loss w_y (1 − p_y)^γ (−log p_y), Lin et al. 2017 with a softmax.

    γ = 0 is `cross_entropy`, and as there the mean divides by Σ w_y. The gradient is finite for every γ where p_y
    rounds to 1.
    """
    where = "softmax_focal"
    check_range(where, "gamma", gamma, 0, float("inf"))
    logits, labels, keep = _prepare_classes(where, logits, targets, ignore_index)
    if labels.size == 0:
        return reduce(where, mx.zeros(labels.shape), reduction)
    total = mx.logsumexp(logits, axis=-1)  # (…)
    is_label = mx.arange(logits.shape[-1]) == labels[..., None]  # (…, C)
    # log(1 − p_y) as the log of the other classes' sum, never 1 − p_y, which is 0 where p_y rounds to 1.
    others = mx.logsumexp(mx.where(is_label, -1e30, logits), axis=-1) - total
    row_weight = _class_weights(where, weight, logits.shape[-1])[labels] * keep
    losses = row_weight * mx.exp(gamma * others) * (total - _pick(logits, labels))
    return reduce(where, losses, reduction, row_weight.sum())


def _prepare_classes(
    where: str, logits: mx.array, targets: mx.array, ignore_index: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Return float32 logits (0 in ignored rows, NaN for impossible labels), labels safe as an index, kept rows."""
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
