"""Linear layers whose weight gradients lie in memory as the weights do.

MLX multiplies xᵀ · dy for the gradient of xWᵀ, and turns the product around as a view. A sum over it in the order of
the indices, and an update together with the weights, then read it across its rows: on a CPU that takes longer than the
product of a small model. dyᵀ · x is the same gradient in the order of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn


class _Linear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        bias = (self.bias,) if "bias" in self else ()
        return cast(mx.array, _apply(x, self.weight, *bias))


@contextmanager
def linears_for_training(model: nn.Module) -> Iterator[None]:
    """Inside, let every `nn.Linear` of `model` compute its gradients in the order of its weights."""
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    try:
        for linear in linears:
            linear.__class__ = _Linear
        yield
    finally:
        for linear in linears:
            linear.__class__ = nn.Linear


@mx.custom_function
def _apply(x: mx.array, weight: mx.array, *bias: mx.array) -> mx.array:
    return mx.addmm(bias[0], x, weight.T) if bias else x @ weight.T


@_apply.vjp
def _gradients(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
    x, weight, *bias = inputs
    dy = cotangent.reshape(-1, cotangent.shape[-1])
    gradients = [cotangent @ weight, dy.T @ x.reshape(-1, x.shape[-1]), *(dy.sum(axis=0) for _ in bias)]
    # A float32 head may stand on a float16 encoder.
    return tuple(gradient.astype(array.dtype) for gradient, array in zip(gradients, inputs, strict=True))
