"""exp and softmax in plain arithmetic, for MLX's CPU backend, where `mx.exp` is a scalar call for every element."""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx

from mlxbert.activations.fused import fused

# 2^f for |f| ≤ 1/2: minimax in relative error (9e-8) among polynomials with 2^0 = 1 exactly.
_EXP2 = (1.0, 0.693146978, 0.240222421, 0.0555073376, 0.009671513, 0.0013264722)
# A float32 this large has no room for a fraction: adding it rounds, and the sum's lowest bits are the integer.
_ROUNDER = 1.5 * 2**23
# A float32's exponent field starts at bit 23.
_EXPONENT_BIT = 23


def has_fast_softmax(dtype: mx.Dtype) -> bool:
    """Whether `softmax` is faster here than MLX's own: float32 on the CPU."""
    return dtype == mx.float32 and mx.default_device() == mx.cpu


def softmax(x: mx.array) -> mx.array:
    """Softmax over the last axis, accumulated in float32; a row of one value throughout is uniform."""
    if not has_fast_softmax(x.dtype):
        return mx.softmax(x, axis=-1, precise=True)
    return cast(mx.array, _softmax_float32(x))


@mx.custom_function
def _softmax_float32(x: mx.array) -> mx.array:
    e = cast(mx.array, exp_nonpositive(x - mx.max(x, axis=-1, keepdims=True)))
    return e / mx.sum(e, axis=-1, keepdims=True)


@_softmax_float32.vjp
def _softmax_vjp(_primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    product = cotangent * output
    return product - output * mx.sum(product, axis=-1, keepdims=True)


@mx.custom_function
def exp_nonpositive(x: mx.array) -> mx.array:
    """exp(x) for float32 x ≤ 0, in plain arithmetic: error below 3e-7 for x > −1, below |x| · 1e-7 beyond (`mx.exp`
    likewise); 0 below −88; NaN stays NaN.
    """
    mantissa, shifted = _exp_parts(x)
    # Through the bits, because in plain arithmetic 2^n is a scalar call. The view copies nothing.
    (bits,) = _scale_by_power(mantissa.view(mx.int32), shifted.view(mx.int32))
    return bits.view(mx.float32)


@exp_nonpositive.vjp
def _exp_vjp(_primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output


# At n = −127 the exponent field becomes 0, which is the number 0.
@fused(-127.0)
def _exp_parts(x: mx.array, smallest: mx.array) -> list[mx.array]:
    """exp(x) = 2^n · 2^f with a whole n: 2^f, and a number whose lowest bits are n."""
    y = mx.maximum(x * math.log2(math.e), smallest)
    shifted = y + _ROUNDER
    f = y - (shifted - _ROUNDER)
    f2 = f * f
    c0, c1, c2, c3, c4, c5 = _EXP2
    return [(c0 + c1 * f) + (c2 + c3 * f) * f2 + (c4 + c5 * f) * (f2 * f2), shifted]


@fused()
def _scale_by_power(mantissa: mx.array, shifted: mx.array) -> list[mx.array]:
    return [mantissa + (shifted << _EXPONENT_BIT)]
