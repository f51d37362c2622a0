"""Losses on independent yes/no logits, binary (N,) or multilabel (N, L). Entries of `ignore_index` are masked."""

from __future__ import annotations

import mlx.core as mx

from heads.losses.reduction import Reduction, Weights, as_weights, check_range, check_same_shape, reduce

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
    """Binary cross-entropy; equals torch `BCEWithLogitsLoss`.

    `logits` and `targets` (in [0, 1]) have one shape. `pos_weight` multiplies the positives' term: a number or (L,).
    `weight` multiplies the loss: a number, (L,), (N, 1) or the shape of the logits; as in torch, the mean does not
    divide by it. `label_smoothing` ε makes targets y(1 − ε) + ε/2. The mean is over the entries not ignored.
    Raises `HeadError` for other shapes.
    """
    where = "bce_with_logits"
    check_range(where, "label_smoothing", label_smoothing, 0, 1)
    logits, targets, keep = _prepare(where, logits, targets, ignore_index)
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
    """Focal loss α_t (1 − p_t)^γ BCE, Lin et al. 2017, https://arxiv.org/abs/1708.02002.

    The formula of torchvision's `sigmoid_focal_loss`: α weights the positives, 1 − α the negatives; None (there: a
    negative number) weights nothing. Unlike there, the gradient is finite for 0 < γ < 1 where p_t rounds to 1.
    """
    where = "sigmoid_focal"
    check_range(where, "gamma", gamma, 0, float("inf"))
    logits, targets, keep = _prepare(where, logits, targets, ignore_index)
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
    """Asymmetric loss (ASL), Ridnik et al. 2020, https://arxiv.org/abs/2009.14119, equations 4 to 6.

    Positives: −(1 − p)^γ₊ log p. Negatives: −p_m^γ₋ log(1 − p_m) with p_m = max(p − clip, 0). The gradient is that of
    the whole formula (the authors' code has a switch that holds the focusing factors constant).
    """
    where = "asymmetric"
    check_range(where, "gamma_neg", gamma_neg, 0, float("inf"))
    check_range(where, "gamma_pos", gamma_pos, 0, float("inf"))
    check_range(where, "clip", clip, 0, 0.5)
    logits, targets, keep = _prepare(where, logits, targets, ignore_index)
    positive = _softplus(-logits) * _power(mx.sigmoid(-logits), gamma_pos)
    shifted = mx.maximum(mx.sigmoid(logits) - clip, 0)  # p_m, at most 1 − clip
    # Without a margin p_m reaches 1, and only the softplus form of −log(1 − p) stays finite.
    negative_log = _softplus(logits) if clip == 0 else -mx.log1p(-shifted)
    losses = targets * positive + (1 - targets) * negative_log * _power(shifted, gamma_neg)
    return reduce(where, mx.where(keep, losses, 0), reduction, keep.sum())


def _prepare(
    where: str, logits: mx.array, targets: mx.array, ignore_index: float | None
) -> tuple[mx.array, mx.array, mx.array]:
    """Logits and targets in float32, ignored entries set to 0 so that no gradient sees them, and the kept entries.

    A target outside [0, 1] that is not ignored becomes NaN.
    """
    check_same_shape(where, logits=logits, targets=targets)
    logits, targets = logits.astype(mx.float32), targets.astype(mx.float32)
    keep = mx.ones_like(targets, dtype=mx.bool_) if ignore_index is None else targets != ignore_index
    # As an impossible class does elsewhere: NaN, since a value cannot be refused inside a compiled step.
    targets = mx.where((targets < 0) | (targets > 1), mx.nan, targets)
    return mx.where(keep, logits, 0), mx.where(keep, targets, 0), keep


def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, mx.array(0.0))


def _power(base: mx.array, exponent: float) -> mx.array:
    """base ** exponent for base ≥ 0, with a finite gradient at 0."""
    return mx.power(mx.maximum(base, TINY), exponent) if exponent else mx.ones_like(base)
