"""GPTQ: round a layer's weights one input at a time, and let those not yet rounded make up for the error.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, with the order of falling importance ("act-order") inside fixed
groups; and the target of Li et al. 2025 (GPTAQ, https://arxiv.org/abs/2504.02692): the layer is to give what the
float32 layer gives on the float32 model's own inputs, although it will get those of the quantized layers before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.quantize.affine import AffineWeight, encode, searched_range
from mlxbert.quantization import LayerQuantization

Array = np.ndarray[Any, Any]

# A share of the mean diagonal is added to it: few inputs must not make a weight free to become anything.
DAMPING = 0.03

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

    def damped(self) -> Array:
        """`own` with its diagonal raised."""
        return self.own + np.eye(len(self.own), dtype=np.float32) * self.damping

    @property
    def damping(self) -> float:
        """What is added to the diagonal; never 0, so that inputs that never occurred do not divide by it."""
        return float(DAMPING * np.diag(self.own).mean()) or 1.0


def compensate(weight: Array, moments: Moments, layer: LayerQuantization, *, dtype: str) -> AffineWeight:
    """The codes of `weight` (outputs, D) whose outputs on the inputs seen are nearest to the float32 model's."""
    hessian = moments.damped().astype(np.float64)
    # argmin over V of |W Xᵀ - V X'ᵀ|² + damping |W - V|²: what V has to be before it is rounded.
    wanted = weight @ (moments.cross + np.eye(len(hessian), dtype=np.float32) * moments.damping)
    target = np.linalg.solve(hessian, wanted.T.astype(np.float64)).T.astype(np.float32)
    return _round_in_order(target, hessian, layer, dtype)


def corrected_bias(bias: Array, weight: Array, rounded: Array, moments: Moments) -> Array:
    """The bias with which the rounded layer's mean output is the float32 one's."""
    exact, own = (total / max(moments.tokens, 1) for total in (moments.exact_sum, moments.own_sum))
    return (bias + weight @ exact - rounded @ own).astype(np.float32)


@np.errstate(over="ignore", invalid="ignore")  # of scales that `check_finite` refuses
def _round_in_order(weight: Array, hessian: Array, layer: LayerQuantization, dtype: str) -> AffineWeight:
    rows, width = weight.shape
    size, top = layer.group_size, 2**layer.bits - 1
    importance = np.diag(hessian).astype(np.float32)
    scales, biases = searched_range(
        weight.reshape(rows, -1, size), layer.bits, importance.reshape(-1, size), dtype=dtype
    )
    wide_scales, wide_biases = scales.astype(np.float32).T, biases.astype(np.float32).T  # (groups, rows)
    order = np.argsort(-importance, kind="stable")
    # The rows of this factor are what rounding input i does to the best values of those after it.
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T.astype(np.float32)
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
