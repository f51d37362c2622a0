"""Check the arguments of a model on the host, before they are used.

MLX does not check an index: it reads beyond the end of the table. So ids are checked before they are used. While
a function is traced (`mx.compile`, `mx.vmap`) arrays have no values yet: there an id outside the table gives NaN.

Prepare a module's parameters as tensors to write, each in its own dtype, one in host memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from heads.arrays import host_values
from mlxbert.errors import MLXBertError
from mlxbert.files.safetensors import PlannedTensor

_FIXES = {
    "input_ids": "use the tokenizer that belongs to this model",
    "token_type_ids": "0 is the first text, 1 the second; a model with one token type takes no pairs",
    "position_ids": "shorten the text, or count from 0",
}


class InputError(MLXBertError, ValueError):
    """An invalid argument of a model: the message names the argument, the place and the fix."""


def whole_numbers(name: str, value: Any) -> mx.array:
    """Return ids as an integer array; `value` is an `mx.array`, a NumPy array or a list.

    Raises:
        InputError: rows of different lengths, or values that are not whole numbers.
    """
    if isinstance(value, mx.array):
        if not mx.issubdtype(value.dtype, mx.integer):
            raise InputError(f"{name} are {value.dtype}; fix: whole numbers, such as {name}.astype(mx.int32)")
        # In a comparison, a Python number beyond an 8-bit type's range is cut to that range.
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

    While the call is traced, ids cannot be checked: an id outside the table gives a row of NaN.

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
        raise InputError(f"{name} must be numbers of at most 64 bits; fix: whole numbers")
    return array


if TYPE_CHECKING:
    from mlxbert.models.base import Encoder

# Narrowest first: (MLX, safetensors, config.json).
_DTYPES = (
    (mx.bfloat16, "BF16", "bfloat16"),
    (mx.float16, "F16", "float16"),
    (mx.float32, "F32", "float32"),
)
DTYPE_CODES = {dtype: code for dtype, code, _ in _DTYPES}


def named_parameters(module: nn.Module) -> dict[str, mx.array]:
    """Return every parameter of a module by its dotted path."""
    flat: Any = tree_flatten(module.parameters())
    return dict(flat)


def tensor_problems(
    tensors: Mapping[str, mx.array],
    expected: Mapping[str, tuple[int, ...]],
    *,
    unexpected: Callable[[str], bool] = lambda name: True,
) -> list[str]:
    """Return a line for each tensor that is missing, unexpected, of another shape, or of whole numbers.

    Args:
        tensors: of a file.
        expected: name and shape of every tensor that the configuration calls for.
        unexpected: whether a name that is not expected is a problem; by default each is.
    """
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unexpected: {name}" for name in sorted(tensors) if name not in expected and unexpected(name)]
    there = {name: tensors[name] for name in expected if name in tensors}
    problems += [
        f"{name} is {tensor.shape}, config.json calls for {expected[name]}"
        for name, tensor in there.items()
        if tensor.shape != expected[name]
    ]
    problems += [
        f"{name} has dtype {tensor.dtype}"
        for name, tensor in there.items()
        if not mx.issubdtype(tensor.dtype, mx.floating)
    ]
    return problems


def planned_tensors(module: nn.Module, prefix: str = "") -> list[PlannedTensor]:
    """Return every parameter of a module under `prefix` and its path.

    Raises:
        MLXBertError: a parameter is not float32, float16 or bfloat16.
    """
    codes = DTYPE_CODES
    planned = []
    for path, array in named_parameters(module).items():
        if array.dtype not in codes:
            raise MLXBertError(f"{prefix}{path} has dtype {array.dtype}; floating-point parameters alone are saved")
        planned.append(
            PlannedTensor(prefix + path, tuple(array.shape), codes[array.dtype], partial(read_array, array))
        )
    return planned


def encoder_tensors(core: Encoder) -> list[PlannedTensor]:
    """Return the encoder's tensors to write; a quantized encoder keeps its packed bytes.

    Raises:
        ChangedWeightsError: a quantized encoder has other weights than it was loaded with.
    """
    if core.packed is None:
        return planned_tensors(core)
    core.packed.check_unchanged(core)
    return core.packed.planned()


def parameter_count(core: Encoder) -> int | None:
    """Return the true number of parameters of a quantized encoder; None if it is not quantized."""
    return None if core.packed is None else core.packed.parameters


def with_true_dtype(config: dict[str, Any], core: Encoder) -> dict[str, Any]:
    """Return a `config.json` with the dtype of the encoder's tensors as they are written."""
    dtype = stored_dtype(core) if core.packed is None else core.packed.dtype
    return {**config, "dtype": dtype, **({"torch_dtype": dtype} if "torch_dtype" in config else {})}


def stored_dtype(module: nn.Module) -> str:
    """Return the dtype for `config.json`: for a mixture, the one that holds every value."""
    dtypes = {array.dtype for array in named_parameters(module).values()}
    if len(dtypes) > 1:
        return "float32"
    return next((name for dtype, _, name in _DTYPES if dtype in dtypes), "float32")


def read_array(array: mx.array) -> np.ndarray[Any, Any]:
    """Return the elements on the host, bfloat16 as `ml_dtypes.bfloat16`."""
    if array.dtype == mx.bfloat16:  # numpy has no bfloat16: reinterpret the bits
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)
