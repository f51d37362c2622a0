"""Embeddings in fewer bytes: float16, int8, uint8 and packed bits, as sentence-transformers computes them.

The numbers equal those of `sentence_transformers.util.quantization.quantize_embeddings`
(https://sbert.net/docs/package_reference/util/quantization.html), which has no float16.

- int8 and uint8 divide the range of each dimension into 256 steps. The ranges come from embeddings of typical texts.
- binary and ubinary keep one bit a dimension, whether the number is above 0, and pack 8 bits into a byte.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import numpy as np

from heads.errors import unknown_name
from mlxbert.errors import MLXBertError, MLXBertWarning

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
"""Name of a precision."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_STORED: dict[str, Any] = {"binary": np.int8, "ubinary": np.uint8}
# As in sentence-transformers: ranges of fewer embeddings are a matter of luck.
_FEW = 100


class PrecisionError(MLXBertError, ValueError):
    """Unknown precision, ranges that are missing or do not fit, or embeddings that the precision cannot hold."""


class PrecisionWarning(MLXBertWarning):
    """The ranges come from few embeddings."""


def check_precision(name: str) -> Precision:
    """Return the name of a precision.

    Raises:
        PrecisionError: it is unknown; the message has the nearest name.
    """
    if name not in PRECISIONS:
        raise PrecisionError(str(unknown_name("precision", name, PRECISIONS)))
    return name


def needs_ranges(precision: str) -> bool:
    """Return whether a precision needs the range of each dimension."""
    return precision in ("int8", "uint8")


def stored_dtype(precision: Precision) -> np.dtype[Any]:
    """Return the type of a number (or of 8 packed bits) on disk and in the array that `quantize` returns."""
    return np.dtype(_STORED.get(precision, precision))


def stored_width(precision: Precision, dimension: int) -> int:
    """Return how many numbers (or bytes of packed bits) an embedding of `dimension` numbers has."""
    return -(-dimension // 8) if precision in _STORED else dimension


def calibration_ranges(embeddings: np.ndarray) -> np.ndarray:
    """Return the smallest and the largest value of each dimension: float32 (2, D).

    Args:
        embeddings: (N, D), of texts that are like those to be embedded; some thousand are enough.

    Raises:
        PrecisionError: there are fewer than two embeddings, or a value is not finite.

    Warns:
        PrecisionWarning: there are fewer than 100.
    """
    values = np.asarray(embeddings)
    if values.ndim != 2 or len(values) < 2:
        raise PrecisionError(
            f"ranges need two embeddings or more, an array (N, D), not one of shape {values.shape}; "
            "fix: give ranges, or the embeddings of some thousand texts for calibration"
        )
    if not np.isfinite(values).all():
        raise PrecisionError("the embeddings for calibration have NaN or infinite values; fix: leave these rows out")
    if len(values) < _FEW:
        warnings.warn(
            f"the ranges come from {len(values)} embeddings only; fix: calibrate on {_FEW} or more",
            PrecisionWarning,
            stacklevel=2,
        )
    return np.stack([values.min(axis=0), values.max(axis=0)]).astype(np.float32)


def quantize(
    embeddings: np.ndarray,
    precision: str,
    *,
    ranges: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
) -> np.ndarray:
    """Return embeddings in a precision.

    Args:
        embeddings: floating point (N, D), or one embedding (D,).
        precision: one of `PRECISIONS`.
        ranges: for int8 and uint8, the smallest and the largest value of each dimension: (2, D).
        calibration: for int8 and uint8 without `ranges`, the embeddings (M, D) that give them; None: `embeddings`
            themselves, so that two calls with other rows are not comparable.

    Returns:
        (N, D); for binary (int8, the packed byte minus 128) and ubinary (uint8) (N, ceil(D / 8)).

    Raises:
        PrecisionError: an unknown precision, ranges of another shape, embeddings that are integers already, or that
            are not finite or too large for the precision (the row is named).

    Warns:
        PrecisionWarning: as `calibration_ranges`.
    """
    name, values = check_precision(precision), np.asarray(embeddings)
    if not np.issubdtype(values.dtype, np.floating):
        raise PrecisionError(f"embeddings to quantize are {values.dtype}; fix: give the float32 ones")
    if name == "float32":
        return values.astype(np.float32)
    _refuse_rows(~np.isfinite(values), f"has NaN or infinite values, which {name} cannot hold")
    if name == "float16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        _refuse_rows(np.isinf(half), "has a value above 65504, the largest of float16")
        return half
    if name in _STORED:
        bits = np.packbits(values > 0, axis=-1)
        return bits if name == "ubinary" else (bits ^ np.uint8(128)).view(np.int8)  # the byte minus 128
    if ranges is None:
        if calibration is None and not values.size:
            return np.zeros(values.shape, stored_dtype(name))
        ranges = calibration_ranges(values if calibration is None else calibration)
    starts, steps = _steps(ranges, values.shape[-1])
    levels = np.clip(np.floor((values - starts) / steps), 0, 255).astype(np.uint8)
    return levels if name == "uint8" else (levels ^ np.uint8(128)).view(np.int8)


def _steps(ranges: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the step of each dimension's levels; a dimension without a range has the step 1."""
    array = np.asarray(ranges, np.float32)
    if array.shape != (2, dimension):
        raise PrecisionError(
            f"ranges have the shape {array.shape}, and embeddings of {dimension} numbers need (2, {dimension}): "
            "the smallest and the largest value of each; fix: calibration_ranges(embeddings)"
        )
    if not np.isfinite(array).all() or (array[0] > array[1]).any():
        raise PrecisionError(
            "ranges have a NaN or infinite value, or a largest value below the smallest; "
            "fix: calibration_ranges(embeddings)"
        )
    steps = (array[1] - array[0]) / np.float32(255)
    return array[0], np.where(steps == 0, np.float32(1), steps)


def _refuse_rows(wrong: np.ndarray, what: str) -> None:
    """Raise for the first row with a wrong value."""
    if wrong.any():
        row = int(np.argmax(wrong.any(axis=-1))) if wrong.ndim > 1 else 0
        raise PrecisionError(f"embedding {row} {what}; fix: precision float32")
