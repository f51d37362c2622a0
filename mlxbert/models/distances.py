"""Distances between tokens: their buckets, and scores by distance as scores by query and key."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]


def log_buckets(distances: Array, buckets: int, longest: int) -> Array:
    """Return the bucket of each distance, which is whole and may be negative; transformers `make_log_bucket_position`.

    Up to half of `buckets` a distance is its own bucket; from there on, buckets grow with the logarithm, so that
    `longest` − 1 is in the last one. Rounded to float32 where torch rounds, because a bucket ends at a whole number.
    """
    half = buckets // 2
    size = np.abs(distances)
    far = size > half
    logarithm = _log(size[far].astype(np.float32) / np.float32(half)) / _log(np.float32((longest - 1) / half))
    result = distances.copy()
    result[far] = np.sign(distances[far]) * (np.ceil(logarithm * np.float32(half - 1)).astype(np.int64) + half)
    return result


def _log(x: Any) -> Any:
    # NumPy's float32 logarithm differs between processors.
    return np.log(np.float64(x)).astype(np.float32)


def skewed(scores: mx.array) -> mx.array:
    """Return out[…, i, j] = scores[…, i, L − 1 − i + j], (…, L, 2L − 1) -> (…, L, L), without a gather.

    Row i shifted by one less than the row above: in rows of 2L − 2 instead of 2L − 1 numbers, it is a rectangle.
    """
    *batch, L, _ = scores.shape
    if L == 1:
        return scores
    flat = scores.reshape(*batch, L * (2 * L - 1))[..., L - 1 : L - 1 + L * (2 * L - 2)]
    return flat.reshape(*batch, L, 2 * L - 2)[..., :L]
