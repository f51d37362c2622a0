"""MLX's 4-bit floating-point formats in NumPy: mxfp4 and nvfp4.

OCP microscaling formats, https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf: a sign
and one of eight magnitudes, times a scale that a group shares: a power of two (mxfp4) or an E4M3 number (nvfp4).
`mlx.core.quantize` gives the same formats, several times slower on a CPU, and takes the scale nearest to the largest
weight; here the scales beside it are tried too, and the one with the smallest squared error is kept.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_BETWEEN = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2
_E8M0_BIAS = 127
_LARGEST_E4M3 = 0x7E  # 448; one above is NaN


def round_fp4(weight: Array, group_size: int, mode: str) -> tuple[Array, Array]:
    """Codes (rows, width) and scales (rows, groups), both uint8, of a (rows, width) float32 weight."""
    rows, width = weight.shape
    groups = weight.reshape(rows, width // group_size, group_size)
    best_error = np.full(groups.shape[:2], np.inf, np.float32)
    best_codes = np.zeros(groups.shape, np.uint8)
    best_scales = np.zeros(groups.shape[:2], np.uint8)
    for scales, values in _candidates(np.abs(groups).max(axis=-1) / MAGNITUDES[-1], mode):
        scaled = groups / values[..., None]
        magnitudes = np.abs(scaled)
        codes = np.zeros(groups.shape, np.uint8)
        for threshold in _BETWEEN:
            codes += magnitudes > threshold
        error = (np.square(MAGNITUDES[codes] - magnitudes)).sum(axis=-1) * np.square(values)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scales = np.where(better, scales, best_scales)
        codes |= (scaled < 0).astype(np.uint8) << 3
        np.copyto(best_codes, codes, where=better[..., None])
    return best_codes.reshape(rows, width), best_scales


def _candidates(exact: Array, mode: str) -> list[tuple[Array, Array]]:
    """Scales as stored and as numbers: those nearest to `exact`, none of them 0."""
    if mode == "mxfp4":
        exponent = np.floor(np.log2(np.maximum(exact, 2.0**-100)))
        pairs = []
        for step in (0, 1):
            power = np.clip(exponent + step, -_E8M0_BIAS + 1, _E8M0_BIAS)
            pairs.append(((power + _E8M0_BIAS).astype(np.uint8), np.exp2(power).astype(np.float32)))
        return pairs
    nearest = exact.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).astype(np.int16)
    pairs = []
    for step in (-1, 0, 1):
        code = np.clip(nearest + step, 1, _LARGEST_E4M3).astype(np.uint8)
        pairs.append((code, code.view(ml_dtypes.float8_e4m3fn).astype(np.float32)))
    return pairs
