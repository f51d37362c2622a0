"""Floating-point formats: what a source has, what is written, and the checks on the way."""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from mlxbert.errors import MLXBertError

NUMPY = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODES = {name: code for code, name in SAFETENSORS.items()}

DTYPE_SUFFIXES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""What a model's name ends in."""

# Elements checked at once: the mask of a whole 94 MB embedding would be another 23 MB.
_CHUNK = 1 << 22


class DtypeError(MLXBertError):
    """A tensor that cannot be written: not floating-point, not finite, or too large for the format asked for."""


def output_dtype(codes: Iterable[str], requested: str | None) -> str:
    """The one dtype of the output, for source tensors of these safetensors dtype codes.

    Without a request the source's own is kept: float64 becomes float32 (MLX has none on a GPU), and a mixture the
    narrowest that holds every value of it.
    """
    if requested is not None:
        return requested
    kinds = {SAFETENSORS.get(code, "float32") for code in codes}
    if kinds in ({"float16"}, {"bfloat16"}):
        return kinds.pop()
    return "float32"


def cast(array: np.ndarray, dtype: str, key: str) -> np.ndarray:
    """`array` in `dtype`, every element finite; the same array where it has that dtype already.

    Raises:
        DtypeError: the tensor `key` is not floating-point, holds NaN or inf, or overflows `dtype`.
    """
    if array.dtype not in NUMPY.values():
        raise DtypeError(
            f"{key} has dtype {array.dtype}: a BERT weight must be float64, float32, float16 or bfloat16; "
            "fix: convert the unquantized checkpoint"
        )
    target = NUMPY[dtype]
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        finite = np.isfinite(chunk)
        if not finite.all():
            bad = chunk[~finite][0]
            place = tuple(int(i) for i in np.unravel_index(start + int(finite.argmin()), array.shape))
            raise DtypeError(
                f"{key} holds {bad} at {place}: this checkpoint is broken; fix: get it again from where it came from"
            )
    if array.dtype == target:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(target)
    flat_result = result.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        if not np.isfinite(flat_result[start : start + _CHUNK]).all():
            largest = np.abs(flat).max()
            raise DtypeError(
                f"{key} overflows {dtype}: its largest magnitude is {float(largest):.6g}, {dtype} holds up to "
                f"{float(ml_dtypes.finfo(target).max):.6g}; fix: --dtype bfloat16 or float32"
            )
    return result
