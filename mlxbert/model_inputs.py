"""What a model is called with: checked on the host where it enters, and safe where the host cannot look.

MLX does not check an index: it reads whatever lies behind the table. So ids are looked at before they are used. While
a function is traced (`mx.compile`, `mx.vmap`) arrays have no values yet: there an id outside the table gives NaN.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.arrays import host_values
from mlxbert.errors import MLXBertError

_FIXES = {
    "input_ids": "use the tokenizer that belongs to this model",
    "token_type_ids": "0 is the first text, 1 the second; a model with one token type takes no pairs",
    "position_ids": "shorten the text, or count from 0",
}


class InputError(MLXBertError, ValueError):
    """A model was called with something that it cannot take: the message names the argument, the place and the fix."""


def whole_numbers(name: str, value: Any) -> mx.array:
    """Return ids as an integer array; `value` is an `mx.array`, a NumPy array or a list.

    Raises:
        InputError: rows of different lengths, or something that is no whole number.
    """
    if isinstance(value, mx.array):
        if not mx.issubdtype(value.dtype, mx.integer):
            raise InputError(f"{name} are {value.dtype}; fix: whole numbers, such as {name}.astype(mx.int32)")
        # A Python number beyond an 8-bit type's range is cut to it in a comparison.
        return value.astype(mx.int32) if value.dtype.size < 4 else value
    array = _array(name, value)
    if array.size == 0:
        return mx.zeros(array.shape, mx.int32)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} are {array.dtype}, not whole numbers; fix: give whole numbers, such as [[0, 1]]")
    return mx.array(array if array.dtype.itemsize == 8 else array.astype(np.int32 if array.itemsize < 4 else np.int64))


def mask_of(name: str, value: Any) -> mx.array:
    """Return a mask as an array: 1 (or True) for real tokens, 0 for padding.

    Raises:
        InputError: rows of different lengths, or a value that is neither 0 nor 1.
    """
    values = host_values(value) if isinstance(value, mx.array) else _array(name, value)
    if values is not None and values.dtype != np.bool_ and values.size:
        if values.dtype.kind not in "iuf":
            raise InputError(f"{name} is {values.dtype}; fix: 1 for real tokens, 0 for padding")
        if not ((values == 0) | (values == 1)).all():
            other = values[(values != 0) & (values != 1)][0]
            raise InputError(f"{name} holds {other}; fix: 1 for real tokens, 0 for padding; masks are never added")
    return mx.array(values) if isinstance(values, np.ndarray) and not isinstance(value, mx.array) else value


def embedded(name: str, table: nn.Module, ids: mx.array) -> mx.array:
    """Return the rows (…, D) of an embedding table for `ids` (…), the argument `name` of the model.

    Where the ids cannot be looked at, because the call is being traced, an id outside the table gives a row of NaN.

    Raises:
        InputError: an id outside the table.
    """
    size = table.weight.shape[0]
    values = host_values(ids)
    if values is None:
        inside = (ids >= 0) & (ids < size)
        return mx.where(inside[..., None], table(mx.where(inside, ids, 0)), mx.nan)
    check_range(name, values, size)
    return table(ids)


def check_range(name: str, values: np.ndarray[Any, Any], size: int) -> None:
    """Refuse ids that a table of `size` rows does not have.

    Raises:
        InputError: names the first one and its place.
    """
    if not values.size or (values.min() >= 0 and values.max() < size):
        return
    outside = np.argwhere((values < 0) | (values >= size))
    first = tuple(outside[0].tolist())
    raise InputError(
        f"{name}: {values[first]} at {list(first)} is outside the model's table, which has the rows 0 to {size - 1}"
        + (f" ({len(outside)} ids are)" if len(outside) > 1 else "")
        + f"; fix: {_FIXES[name]}"
    )


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        array = None
    if array is None:
        raise InputError(f"{name} cannot be read as an array: are the rows of different lengths? fix: pad them")
    if array.dtype == object:
        raise InputError(f"{name} hold something that is no number, or a number beyond 64 bits; fix: whole numbers")
    return array
