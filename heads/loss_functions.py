"""Every built-in loss as a function: of yes/no logits, of exclusive classes, of numbers, and of ordered ratings.

All are computed in float32 whatever the dtype of the input, and return float32 (gradients have the input's dtype).
Shapes are checked and nothing is broadcast; `reduction` is "mean", "sum" or "none". Entries of `ignore_index` count
neither in the sum nor in the divisor of the mean; a mean over nothing is 0 with a zero gradient. Another label out of
range gives NaN, loss and gradient, where torch raises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import mlx.core as mx

from heads.arrays import as_int32
from heads.checks import check_number
from heads.errors import HeadError

__all__ = [
    "Reduction",
    "asymmetric",
    "bce_with_logits",
    "coral",
    "corn",
    "cross_entropy",
    "cumulative_link",
    "cumulative_logits",
    "gaussian_nll",
    "huber",
    "mae",
    "mse",
    "pinball",
    "sigmoid_focal",
    "softmax_focal",
]

Reduction = Literal["mean", "sum", "none"]
Weights = float | Sequence[float] | mx.array


def check_same_shape(where: str, **arrays: mx.array) -> None:
    """Refuse arrays of different shapes: (N, 1) against (N,) would become (N, N) and train on nonsense."""
    (first, leader), *others = arrays.items()
    for name, array in others:
        if array.shape != leader.shape:
            raise HeadError(
                f"{where}: {first} {leader.shape} and {name} {array.shape} must have one shape, nothing is broadcast; "
                f"fix: {_shape_fix(first, leader, name, array)}"
            )


def _shape_fix(first: str, leader: mx.array, name: str, array: mx.array) -> str:
    if leader.ndim == array.ndim + 1 and leader.shape[-1] == 1:
        return f"{first}.squeeze(-1)"
    if array.ndim == leader.ndim + 1 and array.shape[-1] == 1:
        return f"{name}.squeeze(-1)"
    return f"give {name} the shape of {first}"


def class_targets(where: str, logits: mx.array, targets: mx.array) -> mx.array:
    """Return class indices (…) as int32 after a check against logits (…, C).

    Raises:
        HeadError: other shapes, or targets that are not integers.
    """
    if logits.ndim < 2 or logits.shape[:-1] != targets.shape:
        raise HeadError(
            f"{where}: logits {logits.shape} need targets of shape {logits.shape[:-1] or '(N,)'}, not "
            f"{targets.shape}; fix: logits are (N, C) and targets are class indices (N,)"
        )
    if not mx.issubdtype(targets.dtype, mx.integer):
        raise HeadError(
            f"{where}: targets are {targets.dtype}, class indices are integers; fix: targets.astype(mx.int32)"
        )
    return as_int32(targets)


def as_weights(where: str, name: str, value: Weights, shapes: Sequence[tuple[int, ...]]) -> mx.array:
    """Return weights as float32.

    Raises:
        HeadError: their shape is none of `shapes`.
    """
    if isinstance(value, Sequence):
        value = mx.array(list(value), dtype=mx.float32)
    weights = value.astype(mx.float32) if isinstance(value, mx.array) else mx.array(value, dtype=mx.float32)
    if weights.shape not in shapes:
        allowed = " or ".join(dict.fromkeys("a number" if shape == () else str(shape) for shape in shapes))
        raise HeadError(f"{where}: {name} has shape {weights.shape}; fix: give {allowed}")
    return weights


def reduce(where: str, values: mx.array, reduction: Reduction, total: mx.array | None = None) -> mx.array:
    """Return the values, their sum, or their sum divided by `total` (None: their number).

    A mean over nothing (total 0: every label ignored, or no rows) is 0 with a zero gradient, where torch gives NaN:
    a micro-batch without labels then moves no parameter instead of destroying all of them.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        total = mx.array(values.size) if total is None else total
        total = total.astype(mx.float32)
        return mx.where(total > 0, values.sum() / mx.where(total > 0, total, 1), 0)
    raise HeadError(f"{where}: unknown reduction {reduction!r}; fix: 'mean', 'sum' or 'none'")


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
    check_number(label_smoothing, f"{where}: label_smoothing", 0, 1)
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
    check_number(gamma, f"{where}: gamma", 0, math.inf)
    logits, targets, keep = _prepare_bits(where, logits, targets, ignore_index)
    cross_entropy = (1 - targets) * logits + _softplus(-logits)
    # 1 − p_t from both tails: subtracting p_t from 1 would lose all digits where it matters.
    missing = targets * mx.sigmoid(-logits) + (1 - targets) * mx.sigmoid(logits)
    losses = cross_entropy * _power(missing, gamma)
    if alpha is not None:
        check_number(alpha, f"{where}: alpha", 0, 1)
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
    check_number(gamma_neg, f"{where}: gamma_neg", 0, math.inf)
    check_number(gamma_pos, f"{where}: gamma_pos", 0, math.inf)
    check_number(clip, f"{where}: clip", 0, 0.5)
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
    check_number(label_smoothing, f"{where}: label_smoothing", 0, 1)
    logits, labels, keep = _prepare_labels(where, logits, targets, ignore_index, logits.shape[-1] - 1)
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
    check_number(gamma, f"{where}: gamma", 0, math.inf)
    logits, labels, keep = _prepare_labels(where, logits, targets, ignore_index, logits.shape[-1] - 1)
    if labels.size == 0:
        return reduce(where, mx.zeros(labels.shape), reduction)
    total = mx.logsumexp(logits, axis=-1)  # (…)
    is_label = mx.arange(logits.shape[-1]) == labels[..., None]  # (…, C)
    # log(1 − p_y) as the log of the other classes' sum, never 1 − p_y, which is 0 where p_y rounds to 1.
    others = mx.logsumexp(mx.where(is_label, -1e30, logits), axis=-1) - total
    row_weight = _class_weights(where, weight, logits.shape[-1])[labels] * keep
    losses = row_weight * mx.exp(gamma * others) * (total - _pick(logits, labels))
    return reduce(where, losses, reduction, row_weight.sum())


def _prepare_labels(
    where: str, logits: mx.array, targets: mx.array, ignore_index: int, highest: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Return float32 logits (0 in ignored rows, NaN for impossible labels), labels safe as an index, kept rows.

    NaN, because under `mx.compile` values cannot be looked at, and MLX's own gather reads past the row.
    """
    labels = class_targets(where, logits, targets)
    keep = labels != ignore_index
    invalid = keep & ((labels < 0) | (labels > highest))
    logits = mx.where(keep[..., None], logits.astype(mx.float32), 0)
    logits = mx.where(invalid[..., None], mx.nan, logits)
    return logits, mx.clip(mx.where(keep, labels, 0), 0, highest), keep


def _class_weights(where: str, weight: Weights | None, classes: int) -> mx.array:
    return mx.ones(classes) if weight is None else as_weights(where, "weight", weight, [(classes,)])


def _pick(values: mx.array, labels: mx.array) -> mx.array:
    return mx.take_along_axis(values, labels[..., None], axis=-1).squeeze(-1)


def mse(predictions: mx.array, targets: mx.array, *, reduction: Reduction = "mean") -> mx.array:
    """Return the squared error; equals torch `MSELoss`."""
    return reduce("mse", mx.square(_error("mse", predictions, targets)), reduction)


def mae(predictions: mx.array, targets: mx.array, *, reduction: Reduction = "mean") -> mx.array:
    """Return the absolute error; equals torch `L1Loss`."""
    return reduce("mae", mx.abs(_error("mae", predictions, targets)), reduction)


def huber(predictions: mx.array, targets: mx.array, *, delta: float = 1.0, reduction: Reduction = "mean") -> mx.array:
    """Return a loss that is quadratic up to an error of `delta`, then linear; equals torch `HuberLoss`."""
    check_number(delta, "huber: delta", 0, math.inf, open_ends=True)
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
    check_number(eps, "gaussian_nll: eps", 0, math.inf, open_ends=True)
    check_same_shape("gaussian_nll", mean=mean, variance=variance, targets=targets)
    error = _error("gaussian_nll", mean, targets)
    variance = variance.astype(mx.float32)
    clamped = mx.where(variance < 0, mx.nan, mx.maximum(variance, eps))
    variance = variance + mx.stop_gradient(clamped - variance)
    losses = 0.5 * (mx.log(variance) + mx.square(error) / variance)
    return reduce("gaussian_nll", losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


def pinball(predictions: mx.array, targets: mx.array, *, quantile: float, reduction: Reduction = "mean") -> mx.array:
    """Return max(q e, (q − 1) e) of e = y − prediction, the quantile loss; as scikit-learn's `mean_pinball_loss`."""
    check_number(quantile, "pinball: quantile", 0, 1, open_ends=True)
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
    to_upper = _softplus(logits[rows, mx.minimum(labels, last - 1)])  # softplus(−a)
    to_lower = _softplus(-logits[rows, mx.maximum(labels - 1, 0)])  # softplus(b)
    losses = mx.where(above, to_upper, 0) + mx.where(below, to_lower, 0)
    if last > 1:
        gaps = mx.broadcast_to(gaps, (labels.size, last - 1))
        gap = gaps[rows, mx.clip(labels - 1, 0, last - 2)]
        losses = losses - mx.log(-mx.expm1(-mx.where(below & above & keep, gap, mx.inf)))
    return reduce(where, losses * keep, reduction, keep.sum())


def _question_losses(logits: mx.array, labels: mx.array) -> mx.array:
    """Return the binary cross-entropy (N, K−1) of "is the rating above k?"."""
    above = (labels[:, None] > mx.arange(logits.shape[-1])).astype(mx.float32)
    return (1 - above) * logits + _softplus(-logits)


def _prepare_ratings(
    where: str, logits: mx.array, targets: mx.array, ignore_index: int
) -> tuple[mx.array, mx.array, mx.array]:
    """See `_prepare_labels`; K − 1 logits have K ratings."""
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise HeadError(f"{where}: logits have shape {logits.shape}; fix: (N, K − 1), one less than there are ratings")
    return _prepare_labels(where, logits, targets, ignore_index, logits.shape[1])
