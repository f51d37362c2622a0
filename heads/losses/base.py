"""What every loss does first and last: check shapes, which are never broadcast, and reduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import mlx.core as mx

from heads.arrays import as_int32
from heads.errors import HeadError

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


def poison(logits: mx.array, invalid: mx.array) -> mx.array:
    """Return logits with NaN in the rows of an impossible label, so that their loss and gradient are NaN, too.

    torch raises there; under `mx.compile` values cannot be looked at, and MLX's own gather reads past the row.
    """
    return mx.where(invalid[..., None], mx.nan, logits)


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


def check_range(where: str, name: str, value: float, low: float, high: float, *, open_ends: bool = False) -> None:
    """Refuse a setting outside [low, high], or outside (low, high) with `open_ends`; NaN is outside both."""
    inside = low < value < high if open_ends else low <= value <= high
    if not inside:
        left, right = ("(", ")") if open_ends else ("[", "]")
        raise HeadError(f"{where}: {name}={value}; fix: a number in {left}{low:g}, {high:g}{right}")


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
