"""MLX's affine format in NumPy: scale and bias of each group, codes, and their packing into 32-bit words.

A weight is w ≈ s · q + b with q in 0 … 2ᵇⁱᵗˢ − 1, s and b shared by a group of a row; the codes of a row are one
little-endian stream of bits (`mlx/backend/cpu/quantized.cpp`).

MLX's 4-bit floating-point formats in NumPy: mxfp4 and nvfp4.

OCP microscaling formats, https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf: a sign
and one of eight magnitudes, times a scale that a group shares: a power of two (mxfp4) or an E4M3 number (nvfp4).
`mlx.core.quantize` gives the same formats, several times slower on a CPU, and takes the scale nearest to the largest
weight; here the scales beside it are tried too, and the one with the smallest squared error is kept.

GPTQ: round a layer's weights one input at a time, and let those not yet rounded make up for the error.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, with the order of falling importance ("act-order") inside fixed
groups; and the target of Li et al. 2025 (GPTAQ, https://arxiv.org/abs/2504.02692): the layer is to give what the
float32 layer gives on the float32 model's own inputs, although it will get those of the quantized layers before it.

A table of embeddings has no inputs to weigh errors by, but its rows are what the encoder reads: there the place of XᵀX
is taken by how errors of a row move what the encoder gives (`converter.quantize.calibrated`).
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


# A share of the mean diagonal is added to it: few inputs must not make a weight free to become anything.
DAMPING = 0.3

# The same for the target, a regression on the inputs of the calibration texts, which learns them by heart where it
# may, at the cost of text of other kinds.
TARGET_DAMPING = 1.0

_BLOCK = 64


@dataclass
class Moments:
    """What a layer's inputs were: sums over tokens of xᵀx, and of the float32 model's inputs with these.

    Attributes:
        own: (D, D), of the quantized model's inputs with themselves.
        cross: (D, D), of the float32 model's inputs with the quantized model's.
        own_sum, exact_sum: (D,), of either's inputs.
        tokens: how many.
    """

    own: Array
    cross: Array
    own_sum: Array
    exact_sum: Array
    tokens: int = 0

    @classmethod
    def empty(cls, width: int) -> Moments:
        """Nothing seen yet."""
        own, cross = (np.zeros((width, width), np.float32) for _ in range(2))
        return cls(own, cross, np.zeros(width), np.zeros(width))

    def add(self, exact: Array, own: Array) -> None:
        """Count inputs (tokens, D) of the float32 model and of the quantized one, token by token the same."""
        self.own += own.T @ own
        self.cross += exact.T @ own
        self.own_sum += own.sum(axis=0)
        self.exact_sum += exact.sum(axis=0)
        self.tokens += len(own)

    def ridge(self, share: float) -> Array:
        """(D, D): `share` of the mean of `own`'s diagonal, on a diagonal.

        Never 0: inputs that never occurred must not divide by it.
        """
        return np.eye(len(self.own)) * (share * np.diag(self.own).mean() or 1.0)


def compensate(
    weight: Array, moments: Moments, layer: LayerQuantization, *, dtype: str, target_damping: float = TARGET_DAMPING
) -> AffineWeight:
    """The codes of `weight` (outputs, D) whose outputs on the inputs seen are nearest to the float32 model's."""
    # argmin over V of |W Xᵀ - V X'ᵀ|² + ridge |W - V|²: what V has to be before it is rounded.
    ridge = moments.ridge(target_damping)
    wanted = weight @ (moments.cross + ridge)
    target = np.linalg.solve(moments.own + ridge, wanted.T).T.astype(np.float32)
    return _round_in_order(target, _Elimination.of(moments.own + moments.ridge(DAMPING)), layer, dtype)


def compensate_table(table: Array, metric: Array, layer: LayerQuantization, *, dtype: str) -> AffineWeight:
    """The codes of embeddings `table` (rows, D) with the smallest errors eᵀ M e of a row, M being `metric` (D, D)."""
    damping = float(DAMPING * np.diag(metric).mean()) or 1.0
    elimination = _Elimination.of(metric.astype(np.float64) + np.eye(len(metric)) * damping)
    return joined(in_chunks(partial(_round_in_order, elimination=elimination, layer=layer, dtype=dtype), table))


def corrected_bias(bias: Array, weight: Array, rounded: Array, moments: Moments) -> Array:
    """The bias with which the rounded layer's mean output is the float32 one's."""
    exact, own = (total / max(moments.tokens, 1) for total in (moments.exact_sum, moments.own_sum))
    return (bias + weight @ exact - rounded @ own).astype(np.float32)


@dataclass(frozen=True)
class _Elimination:
    """In which order inputs are rounded, and what rounding one does to the best values of those after it.

    Attributes:
        importance: (D,), what an error of each counts by itself.
        order: (D,), falling.
        upper: (D, D), in that order; row i is for the inputs after i.
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


@np.errstate(over="ignore", invalid="ignore")  # of scales that `check_finite` refuses
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
    return encode(numbers, scales, biases, layer.bits)  # exact: every number is one of its group's
