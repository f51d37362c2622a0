"""Losses on predicted numbers; predictions and targets have one shape, which is never broadcast."""

from __future__ import annotations

import math

import mlx.core as mx

from heads.losses.reduction import Reduction, check_range, check_same_shape, reduce


def mse(predictions: mx.array, targets: mx.array, *, reduction: Reduction = "mean") -> mx.array:
    """Squared error; equals torch `MSELoss`."""
    return reduce("mse", mx.square(_error("mse", predictions, targets)), reduction)


def mae(predictions: mx.array, targets: mx.array, *, reduction: Reduction = "mean") -> mx.array:
    """Absolute error; equals torch `L1Loss`."""
    return reduce("mae", mx.abs(_error("mae", predictions, targets)), reduction)


def huber(predictions: mx.array, targets: mx.array, *, delta: float = 1.0, reduction: Reduction = "mean") -> mx.array:
    """Quadratic up to an error of `delta`, linear beyond, slope `delta`; equals torch `HuberLoss`."""
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
    """½ (log σ² + (y − μ)²/σ²), and ½ log 2π with `full`; equals torch `GaussianNLLLoss`.

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
    """Quantile loss max(q e, (q − 1) e) of e = y − prediction; equals scikit-learn's `mean_pinball_loss`."""
    check_range("pinball", "quantile", quantile, 0, 1, open_ends=True)
    error = -_error("pinball", predictions, targets)
    return reduce("pinball", mx.maximum(quantile * error, (quantile - 1) * error), reduction)


def _error(where: str, predictions: mx.array, targets: mx.array) -> mx.array:
    check_same_shape(where, predictions=predictions, targets=targets)
    return predictions.astype(mx.float32) - targets.astype(mx.float32)
