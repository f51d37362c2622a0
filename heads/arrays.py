"""Arrays outside MLX: logits and activations in float64, so that predictions do not have MLX's rounding.

`sigmoid` and `softmax` are written here, not taken from scipy: a trained model predicts where scipy is not
installed, and scipy's would change the last bits of existing predictions.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from heads.errors import HeadError

Float = np.ndarray[Any, np.dtype[np.float64]]


def host_values(array: mx.array) -> np.ndarray[Any, Any] | None:
    """Return an array's values without a copy; None while `mx.compile` or `mx.vmap` traces it."""
    try:
        return np.asarray(array)
    except ValueError as error:
        if "function transformations" not in str(error):
            raise
        return None


def as_int32(labels: mx.array) -> mx.array:
    """Return whole numbers as int32, so that −100 is distinct; a number beyond int32 becomes the lowest int32.

    A plain conversion would change the label: 2³² + 1 to 1, and the uint8 156 to −100.
    """
    if labels.dtype in (mx.int64, mx.uint32, mx.uint64):
        lowest, highest = -(2**31), 2**31 - 1
        beyond = labels > highest
        if labels.dtype == mx.int64:
            beyond = beyond | (labels < lowest)
        labels = mx.where(beyond, lowest, labels.astype(mx.int64))
    return labels.astype(mx.int32)


def to_host(logits: Any, *, columns: int | None, what: str) -> Float:
    """Return `logits` as float64 (N, columns).

    Raises:
        HeadError: another number of columns or axes; `what` names the head.
    """
    array = mx.array(logits)
    if array.ndim != 2 or (columns is not None and array.shape[1] != columns):
        width = "C" if columns is None else columns
        raise HeadError(f"{what}: logits have shape {tuple(array.shape)}; expected (N, {width}), as the head returns")
    return np.array(array.astype(mx.float32)).astype(np.float64)


# Parts of this length or a little less: near the root of a usual width, so that both sums are short.
_PART = 32


def row_sum(x: mx.array) -> mx.array:
    """Return the sum over the last axis, (…, D) -> (…, 1), as a sum of sums of parts.

    MLX's CPU backend adds up a row one number after the other. That takes longer, and its rounding error is five times
    PyTorch's. Every number that is divided by such a sum has it, so that the layers after it enlarge it.
    """
    D = x.shape[-1]
    part = next(size for size in range(min(_PART, D), 0, -1) if D % size == 0)
    return x.reshape(*x.shape[:-1], D // part, part).sum(-1).sum(-1, keepdims=True)


def sigmoid(x: Float) -> Float:
    """Return 1 / (1 + e⁻ˣ), without overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, e) / (1.0 + e))


def softmax(x: Float) -> Float:
    """Return the softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))
