"""MLX's affine format in NumPy: scale and bias of each group, codes, and their packing into 32-bit words.

A weight is w ≈ s · q + b with q in 0 … 2ᵇⁱᵗˢ − 1, s and b shared by a group of a row; the codes of a row are one
little-endian stream of bits (`mlx/backend/cpu/quantized.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from converter.dtypes import DtypeError
from mlxbert.quantization import LayerQuantization

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")

# Weights rounded at once: what that needs besides fits a core's cache.
_CHUNK = 1 << 17
_THREADS = 2

SCALE_DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype("f4")}

# A group of equal weights has no range; below this a float16 scale would be 0, and what divides by it infinite.
_SMALLEST_SCALE = 1e-7

# Without a search: with few codes, cutting the outermost weights of a group is worth it on the whole. (Measured on the
# matrices of all-MiniLM-L6-v2; from 5 bits on, the full range is as good.)
_FIXED_SHRINK = {2: 0.72, 3: 0.87, 4: 0.95}

# Fractions of a group's range that the search tries: cutting the largest weights costs less than widening every step.
_SHRINKS = tuple(1 - 0.02 * step for step in range(16))


@dataclass(frozen=True)
class AffineWeight:
    """A packed weight, unpacked: codes (rows, width) uint8; scales and biases (rows, groups) in their stored dtype."""

    codes: Array
    scales: Array
    biases: Array

    @property
    def numbers(self) -> Array:
        """What MLX makes of it: (rows, width) float32."""
        rows, groups = self.scales.shape
        codes = self.codes.reshape(rows, groups, -1).astype(np.float32)
        codes *= self.scales.astype(np.float32)[..., None]
        codes += self.biases.astype(np.float32)[..., None]
        return codes.reshape(rows, -1)


@np.errstate(over="ignore", invalid="ignore")  # of scales that `check_finite` refuses
def encode(weight: Array, scales: Array, biases: Array, bits: int) -> AffineWeight:
    """The nearest codes for given scales and biases."""
    rows, groups = scales.shape
    codes = weight.reshape(rows, groups, -1) - biases.astype(np.float32)[..., None]
    codes /= scales.astype(np.float32)[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, 2**bits - 1, out=codes)
    return AffineWeight(codes.astype(np.uint8).reshape(rows, -1), scales, biases)


def full_range(groups: Array, bits: int, dtype: str = "float16") -> tuple[Array, Array]:
    """Scale and bias that reach from the smallest to the largest weight of each group (last axis), or nearly."""
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    cut = (high - low) * ((1 - _FIXED_SHRINK.get(bits, 1)) / 2)
    return _rounded(low + cut, high - cut, bits, dtype)


@np.errstate(over="ignore", invalid="ignore")
def searched_range(
    groups: Array, bits: int, importance: Array | None = None, dtype: str = "float16"
) -> tuple[Array, Array]:
    """Scale and bias with the smallest squared error of those that cut the range by up to 30 %.

    Args:
        groups: (…, group size) weights.
        bits: of a code.
        importance: what an error of each weight counts; broadcasts to `groups`; None: all the same.
        dtype: of scale and bias.
    """
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    middle = (low + high) / 2
    best_error = np.full(low.shape, np.inf, np.float32)
    best = full_range(groups, bits, dtype)
    for shrink in _SHRINKS:
        for centre in (middle, np.zeros_like(middle)):
            scale, bias = _rounded(centre + (low - centre) * shrink, centre + (high - centre) * shrink, bits, dtype)
            wide_scale, wide_bias = scale.astype(np.float32)[..., None], bias.astype(np.float32)[..., None]
            error = np.clip(np.rint((groups - wide_bias) / wide_scale), 0, 2**bits - 1)
            error = np.square(error * wide_scale + wide_bias - groups)
            total = (error if importance is None else error * importance).sum(axis=-1)
            better = total < best_error
            best_error = np.where(better, total, best_error)
            best = np.where(better, scale, best[0]), np.where(better, bias, best[1])
    return best


def rounded(weight: Array, layer: LayerQuantization, *, search: bool = False, dtype: str = "float16") -> AffineWeight:
    """Each weight to its nearest code: `weight` (rows, width) float32."""
    parts = in_chunks(partial(rounded_rows, layer=layer, search=search, dtype=dtype), weight)
    return joined(parts)


def joined(parts: Iterable[AffineWeight]) -> AffineWeight:
    """Some rows, and those after them."""
    return AffineWeight(*(np.concatenate(arrays) for arrays in zip(*map(_arrays, parts), strict=True)))


def check_finite(path: str, scales: Array, biases: Array, dtype: str) -> None:
    """Refuse scales and biases of the layer `path` that do not fit their dtype.

    Raises:
        DtypeError: a weight is too large.
    """
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise DtypeError(f"{path}: its weights are too large for {dtype} scales; fix: --dtype bfloat16")


def in_chunks(compute: Callable[[Array], Result], weight: Array) -> list[Result]:
    """`compute` on a few rows after the other, by two threads: NumPy lets go of the interpreter's lock."""
    step = max(1, _CHUNK // weight.shape[1])
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(compute, (weight[start : start + step] for start in range(0, len(weight), step))))


def pack(codes: Array, bits: int) -> Array:
    """Codes (rows, width) to MLX's words (rows, width · bits / 32), uint32."""
    rows, width = codes.shape
    if bits == 8:
        return np.ascontiguousarray(codes).view("<u4")
    # Eight codes of any width fill whole bytes: `bits` of them.
    eights = codes.reshape(rows, width // 8, 8)
    words = np.zeros(eights.shape[:2], np.uint64)
    for place in range(8):
        words |= eights[..., place].astype(np.uint64) << np.uint64(place * bits)
    stream = words.astype("<u8")[..., None].view(np.uint8)[..., :bits]
    return np.ascontiguousarray(stream).reshape(rows, width * bits // 8).view("<u4")


def rounded_rows(
    weight: Array, layer: LayerQuantization, *, search: bool = False, dtype: str = "float16"
) -> AffineWeight:
    """`rounded` for a few rows, in one piece."""
    groups = weight.reshape(len(weight), -1, layer.group_size)
    find = searched_range if search else full_range
    scales, biases = find(groups, layer.bits, dtype=dtype)
    return encode(weight, scales, biases, layer.bits)


def _arrays(weight: AffineWeight) -> tuple[Array, Array, Array]:
    return weight.codes, weight.scales, weight.biases


@np.errstate(over="ignore")
def _rounded(low: Array, high: Array, bits: int, dtype: str) -> tuple[Array, Array]:
    target = SCALE_DTYPES[dtype]
    scale = np.maximum((high - low) / (2**bits - 1), _SMALLEST_SCALE)
    return scale.astype(target), low.astype(target)
