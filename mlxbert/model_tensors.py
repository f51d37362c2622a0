"""A module's parameters as tensors to write, each in its own dtype, one in host memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlxbert.errors import MLXBertError
from mlxbert.files.safetensors import PlannedTensor

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
    """Every parameter of a module by its dotted path."""
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
        tensors: what a file has.
        expected: name and shape of every tensor that the configuration calls for.
        unexpected: which names may not be there beside those; None may, by default.
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


def encoder_tensors(core: Encoder) -> list[PlannedTensor]:
    """Return the encoder's tensors to write: of a quantized one the packed ones, the same bytes.

    Raises:
        ChangedWeightsError: a quantized encoder has other weights than it was loaded with.
    """
    if core.packed is None:
        return planned_tensors(core)
    core.packed.check_unchanged(core)
    return core.packed.planned()


def parameter_count(core: Encoder) -> int | None:
    """Return the true number of parameters of a quantized encoder; None: its tensors have as many numbers."""
    return None if core.packed is None else core.packed.parameters


def with_true_dtype(config: dict[str, Any], core: Encoder) -> dict[str, Any]:
    """Return a `config.json` with the dtype of the encoder's tensors as they are written."""
    dtype = stored_dtype(core) if core.packed is None else core.packed.dtype
    return {**config, "dtype": dtype, **({"torch_dtype": dtype} if "torch_dtype" in config else {})}


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
