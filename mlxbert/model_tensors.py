"""A module's parameters as tensors to write, each in its own dtype, one in host memory at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlxbert.errors import MLXBertError
from mlxbert.files.safetensors import PlannedTensor

# Narrowest first: (MLX, safetensors, config.json).
_DTYPES = (
    (mx.bfloat16, "BF16", "bfloat16"),
    (mx.float16, "F16", "float16"),
    (mx.float32, "F32", "float32"),
)
DTYPE_CODES = {dtype: code for dtype, code, _ in _DTYPES}


def named_parameters(module: nn.Module) -> dict[str, mx.array]:
    """Every parameter of a module by its dotted path."""
    flat: Any = tree_flatten(module.parameters())
    return dict(flat)


def planned_tensors(module: nn.Module, prefix: str = "") -> list[PlannedTensor]:
    """Every parameter of a module under `prefix` and its path.

    Raises:
        MLXBertError: one that is not float32, float16 or bfloat16.
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


def stored_dtype(module: nn.Module) -> str:
    """The dtype that `config.json` names: of a mixture the one that holds every value of it."""
    found = {array.dtype for array in named_parameters(module).values()}
    if len(found) > 1:
        return "float32"
    return next((name for dtype, _, name in _DTYPES if dtype in found), "float32")


def read_array(array: mx.array) -> np.ndarray[Any, Any]:
    """The elements on the host, bfloat16 as `ml_dtypes.bfloat16`."""
    if array.dtype == mx.bfloat16:  # numpy has no bfloat16 of its own: the bits, renamed
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)
