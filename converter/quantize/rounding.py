"""From float32 matrices to codes and scales: MLX's affine format, its 4-bit floats, and GPTQ for the affine one.

Affine: a weight is w ≈ s · q + b with a code q in 0 … 2ᵇⁱᵗˢ − 1; a group of a row shares s and b; the codes of a row
are one little-endian stream of bits (`mlx/backend/cpu/quantized.cpp`).

mxfp4 and nvfp4 (OCP microscaling formats, https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf):
a sign and one of eight magnitudes, times a scale of the group: a power of two (mxfp4) or an E4M3 number (nvfp4).
`mlx.core.quantize` gives the same formats, several times slower on a CPU, and takes the scale nearest to the largest
weight; `round_fp4` also tries the scales beside it and keeps the one with the smallest squared error.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323): round the weights of a layer one input at a time, and let
the inputs that follow compensate for the error; in the order of falling importance ("act-order") inside fixed groups.
The target is that of GPTAQ (Li et al. 2025, https://arxiv.org/abs/2504.02692): the output of the float32 layer on the
float32 model's own inputs, although the layer will get those of the quantized layers before it. An embedding table has
no inputs; there `converter.quantize.calibrated.embedding_metric` takes the place of XᵀX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from converter.canonical import DtypeError
from mlxbert.quantization import LayerQuantization

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")

SCALE_DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype("f4")}

# Weights that are rounded together: their intermediate arrays fit the cache of a core.
_CHUNK = 1 << 17
_THREADS = 2


def in_chunks(compute: Callable[[Array], Result], weight: Array) -> list[Result]:
    """Return `compute` of some rows after the other; two threads help, since NumPy releases the interpreter's lock."""
    step = max(1, _CHUNK // weight.shape[1])
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(compute, (weight[start : start + step] for start in range(0, len(weight), step))))


# The affine format

# The scale of a group of equal weights: a float16 scale below this would be 0, and the division by it infinite.
_SMALLEST_SCALE = 1e-7
# The share of a group's range that is used without a search: with few codes it is better to clip the outermost
# weights. (Measured on the matrices of all-MiniLM-L6-v2; from 5 bits on, the full range is as good.)
_FIXED_SHRINK = {2: 0.72, 3: 0.87, 4: 0.95}
# The shares that the search tries: to clip the largest weights costs less than to widen every step.
_SHRINKS = tuple(1 - 0.02 * step for step in range(16))


@dataclass(frozen=True)
class AffineWeight:
    """A rounded matrix: codes (rows, width) uint8; scales and biases (rows, groups) in their stored dtype."""

    codes: Array
    scales: Array
    biases: Array

    @property
    def numbers(self) -> Array:
        """The numbers that MLX computes from it: (rows, width) float32."""
        rows, groups = self.scales.shape
        numbers = self.codes.reshape(rows, groups, -1).astype(np.float32)
        numbers *= self.scales.astype(np.float32)[..., None]
        numbers += self.biases.astype(np.float32)[..., None]
        return numbers.reshape(rows, -1)


def rounded(weight: Array, layer: LayerQuantization, *, search: bool = False, dtype: str = "float16") -> AffineWeight:
    """Round each weight of a (rows, width) float32 matrix to its nearest code.

    Args:
        weight: the matrix.
        layer: bits and group size.
        search: whether each group tries several ranges.
        dtype: dtype of scales and biases.
    """
    return joined(in_chunks(partial(rounded_rows, layer=layer, search=search, dtype=dtype), weight))


def rounded_rows(
    weight: Array, layer: LayerQuantization, *, search: bool = False, dtype: str = "float16"
) -> AffineWeight:
    """Round as `rounded`, all rows at once."""
    groups = weight.reshape(len(weight), -1, layer.group_size)
    choose_range = searched_range if search else full_range
    scales, biases = choose_range(groups, layer.bits, dtype=dtype)
    return encode(weight, scales, biases, layer.bits)


def full_range(groups: Array, bits: int, dtype: str = "float16") -> tuple[Array, Array]:
    """Return scale and bias for the whole range of each group (last axis), or nearly the whole one."""
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    cut = (high - low) * ((1 - _FIXED_SHRINK.get(bits, 1)) / 2)
    return _scale_and_bias(low + cut, high - cut, bits, dtype)


@np.errstate(over="ignore", invalid="ignore")  # `check_finite` refuses such scales
def searched_range(
    groups: Array, bits: int, importance: Array | None = None, dtype: str = "float16"
) -> tuple[Array, Array]:
    """Return the scale and bias with the smallest squared error among ranges that are up to 30 % narrower.

    Args:
        groups: (…, group size) weights.
        bits: of a code.
        importance: weight of each squared error; broadcasts to `groups`; None: all are equal.
        dtype: dtype of scale and bias.
    """
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    middle = (low + high) / 2
    best_error = np.full(low.shape, np.inf, np.float32)
    best = full_range(groups, bits, dtype)
    for shrink in _SHRINKS:
        for centre in (middle, np.zeros_like(middle)):
            ends = centre + (low - centre) * shrink, centre + (high - centre) * shrink
            scale, bias = _scale_and_bias(*ends, bits, dtype)
            wide_scale, wide_bias = scale.astype(np.float32)[..., None], bias.astype(np.float32)[..., None]
            error = np.clip(np.rint((groups - wide_bias) / wide_scale), 0, 2**bits - 1)
            error = np.square(error * wide_scale + wide_bias - groups)
            total = (error if importance is None else error * importance).sum(axis=-1)
            better = total < best_error
            best_error = np.where(better, total, best_error)
            best = np.where(better, scale, best[0]), np.where(better, bias, best[1])
    return best


@np.errstate(over="ignore")
def _scale_and_bias(low: Array, high: Array, bits: int, dtype: str) -> tuple[Array, Array]:
    target = SCALE_DTYPES[dtype]
    scale = np.maximum((high - low) / (2**bits - 1), _SMALLEST_SCALE)
    return scale.astype(target), low.astype(target)


@np.errstate(over="ignore", invalid="ignore")
def encode(weight: Array, scales: Array, biases: Array, bits: int) -> AffineWeight:
    """Return the nearest codes for given scales and biases."""
    rows, groups = scales.shape
    codes = weight.reshape(rows, groups, -1) - biases.astype(np.float32)[..., None]
    codes /= scales.astype(np.float32)[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, 2**bits - 1, out=codes)
    return AffineWeight(codes.astype(np.uint8).reshape(rows, -1), scales, biases)


def joined(parts: Iterable[AffineWeight]) -> AffineWeight:
    """Return parts with some rows each as one matrix."""
    arrays = zip(*((part.codes, part.scales, part.biases) for part in parts), strict=True)
    return AffineWeight(*map(np.concatenate, arrays))


def check_finite(path: str, scales: Array, biases: Array, dtype: str) -> None:
    """Refuse scales and biases of the layer `path` that do not fit their dtype.

    Raises:
        DtypeError: a weight is too large.
    """
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise DtypeError(f"{path}: its weights are too large for {dtype} scales; fix: --dtype bfloat16")


def pack(codes: Array, bits: int) -> Array:
    """Pack codes (rows, width) into MLX's words (rows, width · bits / 32), uint32."""
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


# 4-bit floats

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_THRESHOLDS = (_MAGNITUDES[1:] + _MAGNITUDES[:-1]) / 2
_E8M0_BIAS = 127
_LARGEST_E4M3 = 0x7E  # 448; the next code is NaN


def round_fp4(weight: Array, group_size: int, mode: str) -> tuple[Array, Array]:
    """Return codes (rows, width) and scales (rows, groups), both uint8, of a (rows, width) float32 weight."""
    rows, width = weight.shape
    groups = weight.reshape(rows, width // group_size, group_size)
    best_error = np.full(groups.shape[:2], np.inf, np.float32)
    best_codes = np.zeros(groups.shape, np.uint8)
    best_scales = np.zeros(groups.shape[:2], np.uint8)
    for scales, values in _fp4_scales(np.abs(groups).max(axis=-1) / _MAGNITUDES[-1], mode):
        scaled = groups / values[..., None]
        magnitudes = np.abs(scaled)
        codes = np.zeros(groups.shape, np.uint8)
        for threshold in _THRESHOLDS:
            codes += magnitudes > threshold
        error = (np.square(_MAGNITUDES[codes] - magnitudes)).sum(axis=-1) * np.square(values)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scales = np.where(better, scales, best_scales)
        codes |= (scaled < 0).astype(np.uint8) << 3
        np.copyto(best_codes, codes, where=better[..., None])
    return best_codes.reshape(rows, width), best_scales


def _fp4_scales(exact: Array, mode: str) -> list[tuple[Array, Array]]:
    """Return the scales nearest to `exact`, none of them 0, each as stored and as a number."""
    if mode == "mxfp4":
        exponent = np.floor(np.log2(np.maximum(exact, 2.0**-100)))
        powers = [np.clip(exponent + step, -_E8M0_BIAS + 1, _E8M0_BIAS) for step in (0, 1)]
        return [((power + _E8M0_BIAS).astype(np.uint8), np.exp2(power).astype(np.float32)) for power in powers]
    nearest = exact.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).astype(np.int16)
    codes = [np.clip(nearest + step, 1, _LARGEST_E4M3).astype(np.uint8) for step in (-1, 0, 1)]
    return [(code, code.view(ml_dtypes.float8_e4m3fn).astype(np.float32)) for code in codes]


# GPTQ

# This share of the mean diagonal is added to the diagonal of XᵀX: a weight without inputs must not become arbitrary.
_DAMPING = 0.3
# The same for the target. It is a regression on the inputs of the calibration texts, which would fit these texts too
# closely, at the cost of other texts.
_TARGET_DAMPING = 1.0
# Inputs after which the compensation is applied to all weights that follow.
_BLOCK = 64


@dataclass
class Moments:
    """Sums over the tokens that a layer has read.

    Attributes:
        own: (D, D), xᵀx of the quantized model's inputs.
        cross: (D, D), of the float32 model's inputs with the quantized model's.
        own_sum, exact_sum: (D,), of either's inputs.
        tokens: their number.
    """

    own: Array
    cross: Array
    own_sum: Array
    exact_sum: Array
    tokens: int = 0

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Return the sums over no token."""
        own, cross = (np.zeros((width, width), np.float32) for _ in range(2))
        return cls(own, cross, np.zeros(width), np.zeros(width))

    def add(self, exact: Array, own: Array) -> None:
        """Add inputs (tokens, D) of the float32 model and of the quantized one for the same tokens."""
        self.own += own.T @ own
        self.cross += exact.T @ own
        self.own_sum += own.sum(axis=0)
        self.exact_sum += exact.sum(axis=0)
        self.tokens += len(own)

    def ridge(self, share: float) -> Array:
        """Return `share` of the mean of `own`'s diagonal as a diagonal (D, D), or 1 where that is 0."""
        return np.eye(len(self.own)) * (share * np.diag(self.own).mean() or 1.0)


def compensate(
    weight: Array, moments: Moments, layer: LayerQuantization, *, dtype: str, target_damping: float = _TARGET_DAMPING
) -> AffineWeight:
    """Round `weight` (outputs, D) so that its outputs on the inputs seen are nearest to the float32 model's."""
    # argmin over V of |W Xᵀ - V X'ᵀ|² + ridge |W - V|²: the best V before it is rounded.
    ridge = moments.ridge(target_damping)
    wanted = weight @ (moments.cross + ridge)
    target = np.linalg.solve(moments.own + ridge, wanted.T).T.astype(np.float32)
    return _round_in_order(target, _Elimination.of(moments.own + moments.ridge(_DAMPING)), layer, dtype)


def compensate_table(table: Array, metric: Array, layer: LayerQuantization, *, dtype: str) -> AffineWeight:
    """Round embeddings (rows, D) so that the error eᵀ M e of each row is small, M being `metric` (D, D)."""
    damping = float(_DAMPING * np.diag(metric).mean()) or 1.0
    elimination = _Elimination.of(metric.astype(np.float64) + np.eye(len(metric)) * damping)
    return joined(in_chunks(partial(_round_in_order, elimination=elimination, layer=layer, dtype=dtype), table))


def corrected_bias(bias: Array, weight: Array, rounded: Array, moments: Moments) -> Array:
    """Return the bias with which the mean output of the rounded layer is that of the float32 layer."""
    exact, own = (total / max(moments.tokens, 1) for total in (moments.exact_sum, moments.own_sum))
    return (bias + weight @ exact - rounded @ own).astype(np.float32)


@dataclass(frozen=True)
class _Elimination:
    """The order in which inputs are rounded, and the effect of one on the best values of those that follow.

    Attributes:
        importance: (D,), weight of a squared error of each input.
        order: (D,), inputs by falling importance.
        upper: (D, D), in that order; row i holds the effects on the inputs after i.
    """

    importance: Array
    order: Array
    upper: Array

    @classmethod
    def of(cls, hessian: Array) -> _Elimination:
        importance = np.diag(hessian).astype(np.float32)
        order = np.argsort(-importance, kind="stable")
        upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T.astype(np.float32)
        return cls(importance, order, upper)


@np.errstate(over="ignore", invalid="ignore")
def _round_in_order(weight: Array, elimination: _Elimination, layer: LayerQuantization, dtype: str) -> AffineWeight:
    rows, width = weight.shape
    size, top = layer.group_size, 2**layer.bits - 1
    order, upper = elimination.order, elimination.upper
    importance = elimination.importance.reshape(-1, size)
    scales, biases = searched_range(weight.reshape(rows, -1, size), layer.bits, importance, dtype=dtype)
    wide_scales, wide_biases = scales.astype(np.float32).T, biases.astype(np.float32).T  # (groups, rows)
    left = np.ascontiguousarray(weight[:, order].T)  # (D, outputs): one input is one row
    final = np.empty_like(left)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        errors = np.empty((stop - start, rows), np.float32)
        for i in range(start, stop):
            group = order[i] // size
            codes = np.clip(np.rint((left[i] - wide_biases[group]) / wide_scales[group]), 0, top)
            final[i] = codes * wide_scales[group] + wide_biases[group]
            errors[i - start] = (left[i] - final[i]) / upper[i, i]
            left[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], errors[i - start])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    numbers = np.empty_like(weight)
    numbers[:, order] = final.T
    return encode(numbers, scales, biases, layer.bits)  # exact: every number has a code of its group
