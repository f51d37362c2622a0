"""GPTQ: round a layer's weights one input at a time, and let those not yet rounded make up for the error.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, with the order of falling importance ("act-order") inside fixed
groups; and the target of Li et al. 2025 (GPTAQ, https://arxiv.org/abs/2504.02692): the layer is to give what the
float32 layer gives on the float32 model's own inputs, although it will get those of the quantized layers before it.

A table of embeddings has no inputs to weigh errors by, but its rows are what the encoder reads: there the place of XᵀX
is taken by how errors of a row move what the encoder gives (`converter.quantize.embedding_metric`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from converter.quantize.affine import AffineWeight, encode, in_chunks, joined, searched_range
from mlxbert.quantization import LayerQuantization

Array = np.ndarray[Any, Any]

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
