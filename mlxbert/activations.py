"""The activation functions that Hugging Face configurations name, and softmax, fast on a CPU too.

MLX's CPU backend calls a scalar function for every element of erf, exp and softmax (12–25 ns each), and passes over
memory once for every other operation. `mx.compile` turns a chain of plain arithmetic into one vectorized loop, with
g++, when it is first run: about 0.4 s a loop, kept as a file in the temporary directory for later processes. Without
g++ MLX runs such a chain operation by operation by itself: slower, and with the same result.

So exp, erf and tanh are computed here in plain arithmetic.

Formulas: transformers `src/transformers/activations.py` (`ACT2FN`). Names that share a formula share a function;
`prelu` and `xielu` have weights of their own, which no encoder here has, and are not here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial, wraps
from typing import cast

import mlx.core as mx

from heads.arrays import row_sum

Arithmetic = Callable[..., list[mx.array]]

_log = logging.getLogger("mlxbert")
_compiles: dict[mx.DeviceType, bool] = {}


def fused(*limits: float) -> Callable[[Arithmetic], Arithmetic]:
    """Decorate element-wise arithmetic (arrays of one shape to arrays of that shape), so that it is compiled.

    The function gets its arrays flattened, then each of `limits` as a scalar array, and uses neither reductions nor
    arrays of its own. Numbers that it clips with belong in `limits`: if g++ knows the clipped value, it writes a
    branch and does not vectorize the loop (GELU of 8 × 128 × 3072 numbers: 9 ms instead of 5). MLX cuts a
    path of more than 11 operations between input and output into several loops (`max_compile_depth`, compile.cpp).
    """

    def decorate(function: Arithmetic) -> Arithmetic:
        # Not shapeless: that inserts a broadcast at every operation, each counts in the depth, and the loop falls to
        # pieces. Another shape costs another trace, 0.2 ms; the loop itself knows no shape.
        compiled = mx.compile(function)

        @wraps(function)
        def run(*arrays: mx.array) -> list[mx.array]:
            # Flattened, because for every other layout MLX compiles another loop, which is not vectorized.
            flat = [*(array.reshape(-1) for array in arrays), *(mx.array(limit) for limit in limits)]
            device = mx.default_device().type
            if device not in _compiles:
                _compiles[device] = _works(compiled, flat)
            outputs = (compiled if _compiles[device] else function)(*flat)
            return [output.reshape(arrays[0].shape) for output in outputs]

        return run

    return decorate


def _works(compiled: Arithmetic, arrays: list[mx.array]) -> bool:
    """Return whether a compiled function runs on test numbers: the compiler works, and its output can be loaded.

    MLX itself only checks that g++ exists. Otherwise the error would come when the numbers are computed, too late
    to use the uncompiled function.
    """
    try:
        mx.eval(compiled(*(mx.ones([1] * array.ndim, array.dtype) for array in arrays)))
    except RuntimeError as error:
        reason = str(error).rpartition("the output is:")[2]
        _log.warning(
            "mlxbert: mx.compile fails here (%s); activations and softmax run uncompiled, which is slower; "
            "fix: install g++ with its headers, or set MLX_DISABLE_COMPILE=1 to silence this line",
            " ".join(reason.split())[:200],
        )
        return False
    return True


# 2^f for |f| ≤ 1/2: minimax in relative error (9e-8) among polynomials with 2^0 = 1 exactly.
_EXP2 = (1.0, 0.693146978, 0.240222421, 0.0555073376, 0.009671513, 0.0013264722)
# A float32 this large has no room for a fraction: adding it rounds, and the sum's lowest bits are the integer.
_ROUNDER = 1.5 * 2**23
# A float32's exponent field starts at bit 23.
_EXPONENT_BIT = 23


def has_fast_softmax(dtype: mx.Dtype) -> bool:
    """Return whether `softmax` is faster here than MLX's own: float32 on the CPU."""
    return dtype == mx.float32 and mx.default_device() == mx.cpu


def softmax(x: mx.array) -> mx.array:
    """Return the softmax over the last axis, accumulated in float32; a row of equal values becomes uniform."""
    if not has_fast_softmax(x.dtype):
        return mx.softmax(x, axis=-1, precise=True)
    return cast(mx.array, _softmax_float32(x))


@mx.custom_function
def _softmax_float32(x: mx.array) -> mx.array:
    e = cast(mx.array, exp_nonpositive(x - mx.max(x, axis=-1, keepdims=True)))
    return e / row_sum(e)


@_softmax_float32.vjp
def _softmax_vjp(_primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    product = cotangent * output
    return product - output * row_sum(product)


@mx.custom_function
def exp_nonpositive(x: mx.array) -> mx.array:
    """Return exp(x) for float32 x ≤ 0, in plain arithmetic.

    The error is below 3e-7 for x > −1, below |x| · 1e-7 beyond (as in `mx.exp`); 0 below −88; NaN stays NaN.
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
    """Split exp(x) = 2^n · 2^f with a whole n; return 2^f, and a number whose lowest bits are n."""
    y = mx.maximum(x * math.log2(math.e), smallest)
    shifted = y + _ROUNDER
    f = y - (shifted - _ROUNDER)
    f2 = f * f
    c0, c1, c2, c3, c4, c5 = _EXP2
    return [(c0 + c1 * f) + (c2 + c3 * f) * f2 + (c4 + c5 * f) * (f2 * f2), shifted]


@fused()
def _scale_by_power(mantissa: mx.array, shifted: mx.array) -> list[mx.array]:
    return [mantissa + (shifted << _EXPONENT_BIT)]


Activation = Callable[[mx.array], mx.array]


# (Φ(z) − ½) / z = P(z²) / Q(z²) for |z| ≤ 5.6, beyond which Φ is 0 or 1 in float32: minimax, fitted in 40 digits with
# iteratively reweighted least squares; the error of Φ is 9e-9, a sixth of float32's rounding.
_CDF_LIMIT = 5.6
# Beyond 5.6 the fraction grows past ½, here by 4e-7, more than it is rounded by. So GELU, cut to max(x, 0), is exactly
# 0 or x there. Rounding alone would leave ±2e-7 in every inactive unit, and a feed-forward block adds up thousands.
_GELU_LIMIT = 5.9
_CDF_P = (0.398942222, 0.0343756687, 0.00470722666, 0.000173845394, 6.35641952e-06, 2.21452057e-08)
_CDF_Q = (1.0, 0.252832737, 0.0289398216, 0.00191294865, 7.50998021e-05, 1.18020039e-06)


def gelu(x: mx.array) -> mx.array:
    """Return x · Φ(x) with the exact normal distribution function; https://arxiv.org/abs/1606.08415.

    Computed in float32 for every dtype, as torch does. Φ is a rational function instead of `mx.erf`, which on the
    CPU is a scalar call for every element, 25 ns, and would take half of a forward pass. Its error is that of float32
    arithmetic, as torch's is, so it suits every device. Half precision on a GPU: see `_half_gelu`.
    """
    if _is_half_on_a_gpu(x):
        return _half_gelu(x)
    return cast(mx.array, _gelu_float32(x.astype(mx.float32))).astype(x.dtype)


@mx.custom_function
def _gelu_float32(x: mx.array) -> mx.array:
    return _gelu_fused(x)[0]


@_gelu_float32.vjp
def _gelu_vjp(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
    # Φ(x) + x φ(x). By hand: differentiating the fraction would keep some twenty arrays of x's size for every layer.
    cdf, exponent = _cdf_fused(x)
    bell = cast(mx.array, exp_nonpositive(exponent))
    return cotangent * (cdf + x * ((1 / math.sqrt(2 * math.pi)) * bell))


@fused(_GELU_LIMIT)
def _gelu_fused(x: mx.array, limit: mx.array) -> list[mx.array]:
    # The second number is max(x, 0), which GELU never exceeds.
    return [mx.minimum(_times_cdf(x, limit, _CDF_P, _CDF_Q), 0.5 * x + 0.5 * mx.abs(x))]


@fused(_CDF_LIMIT)
def _cdf_fused(x: mx.array, limit: mx.array) -> list[mx.array]:
    return [_cdf(x, limit, _CDF_P, _CDF_Q), -0.5 * (x * x)]


# The same for the tanh approximation of Φ, which is 0 or 1 in float32 beyond 5.18: the error is 6e-9.
_TANH_CDF_LIMIT = 5.18
_TANH_CDF_P = (0.398942323, 0.0302974804, 0.00363106909, 0.000132879483, 7.06954323e-06, 2.4276377e-08)
_TANH_CDF_Q = (1.0, 0.243436898, 0.0243021834, 0.00129590804, 7.56655787e-05, 1.32365594e-06)
_TANH_SCALE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu_tanh(x: mx.array) -> mx.array:
    """Return x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, the tanh approximation of GELU, as `gelu` by a fraction.

    Not `mlx.nn.gelu_approx`'s sigmoid form, which is off by 4e-4.
    """
    if _is_half_on_a_gpu(x):
        return _half_gelu_tanh(x)
    return cast(mx.array, _gelu_tanh_float32(x.astype(mx.float32))).astype(x.dtype)


@mx.custom_function
def _gelu_tanh_float32(x: mx.array) -> mx.array:
    return _gelu_tanh_fused(x)[0]


@_gelu_tanh_float32.vjp
def _gelu_tanh_vjp(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
    cdf, exponent = _tanh_cdf_fused(x)
    return cotangent * _gelu_tanh_slope(x, cdf, cast(mx.array, exp_nonpositive(exponent)))[0]


@fused(_TANH_CDF_LIMIT)
def _gelu_tanh_fused(x: mx.array, limit: mx.array) -> list[mx.array]:
    return [_times_cdf(x, limit, _TANH_CDF_P, _TANH_CDF_Q)]


@fused(_TANH_CDF_LIMIT)
def _tanh_cdf_fused(x: mx.array, limit: mx.array) -> list[mx.array]:
    size = mx.abs(x)
    return [_cdf(x, limit, _TANH_CDF_P, _TANH_CDF_Q), (-2 * _TANH_SCALE) * size * (1 + _TANH_CUBE * (size * size))]


# Beyond 12 the exponential is 0, and a larger cube would overflow.
@fused(12.0)
def _gelu_tanh_slope(x: mx.array, cdf: mx.array, exponential: mx.array, limit: mx.array) -> list[mx.array]:
    # Φ + x Φ', where Φ' = e / (1 + e)² times twice the slope of tanh's argument.
    z = mx.clip(x, -limit, limit)
    bell = exponential / ((1 + exponential) * (1 + exponential))
    return [cdf + (2 * _TANH_SCALE) * z * bell * (1 + (3 * _TANH_CUBE) * (z * z))]


def _is_half_on_a_gpu(x: mx.array) -> bool:
    return x.dtype in (mx.float16, mx.bfloat16) and mx.default_device() != mx.cpu


# On a GPU the products in half precision are so fast that GELU waits for memory: a conversion to float32 and back
# around it would move five times the bytes. So one kernel converts, too; its erf, unlike the CPU's, is cheap.
@partial(mx.compile, shapeless=True)
def _half_gelu(x: mx.array) -> mx.array:
    y = x.astype(mx.float32)
    return (y * (0.5 + 0.5 * mx.erf(math.sqrt(0.5) * y))).astype(x.dtype)


@partial(mx.compile, shapeless=True)
def _half_gelu_tanh(x: mx.array) -> mx.array:
    y = x.astype(mx.float32)
    return (y * (0.5 + 0.5 * mx.tanh(_TANH_SCALE * y * (1 + _TANH_CUBE * (y * y))))).astype(x.dtype)


def _times_cdf(x: mx.array, limit: mx.array, p: tuple[float, ...], q: tuple[float, ...]) -> mx.array:
    """Return x · Φ(x), where (Φ(z) − ½) / z = P(z²) / Q(z²)."""
    size = mx.abs(x)
    z = mx.minimum(size, limit)
    upper, lower = _cdf_fraction(z, p, q)
    # z over 256, because P reaches 18 and the product is not to overflow before the division.
    return 0.5 * x + size * (z * 2**-8) * upper / (lower * 2**-8)


def _cdf(x: mx.array, limit: mx.array, p: tuple[float, ...], q: tuple[float, ...]) -> mx.array:
    """Return Φ(x)."""
    z = mx.clip(x, -limit, limit)
    upper, lower = _cdf_fraction(z, p, q)
    return 0.5 + z * upper / lower


def _cdf_fraction(z: mx.array, p: tuple[float, ...], q: tuple[float, ...]) -> tuple[mx.array, mx.array]:
    """Return P(z²) and Q(z²), by Estrin's scheme: Horner's is a longer path, which `fused` would have to cut."""
    t = z * z
    t2 = t * t
    t4 = t2 * t2

    def polynomial(c: tuple[float, ...]) -> mx.array:
        return (c[0] + c[1] * t) + (c[2] + c[3] * t) * t2 + (c[4] + c[5] * t) * t4

    return polynomial(p), polynomial(q)


def quick_gelu(x: mx.array) -> mx.array:
    """Return x · sigmoid(1.702 x)."""
    return x * mx.sigmoid(1.702 * x)


def gelu_10(x: mx.array) -> mx.array:
    """Return GELU clipped to [−10, 10]; https://arxiv.org/abs/2004.09602."""
    return mx.clip(gelu(x), -10, 10)


def silu(x: mx.array) -> mx.array:
    """Return x · sigmoid(x)."""
    return x * mx.sigmoid(x)


def relu(x: mx.array) -> mx.array:
    """Return max(x, 0)."""
    return mx.maximum(x, 0)


def relu2(x: mx.array) -> mx.array:
    """Return max(x, 0)²; https://arxiv.org/abs/2109.08668."""
    return mx.square(relu(x))


def relu6(x: mx.array) -> mx.array:
    """Return min(max(x, 0), 6)."""
    return mx.clip(x, 0, 6)


def leaky_relu(x: mx.array) -> mx.array:
    """Return x where positive, 0.01 x elsewhere (torch's default slope)."""
    return mx.maximum(x, 0.01 * x)


def hardswish(x: mx.array) -> mx.array:
    """Return x · relu6(x + 3) / 6."""
    return x * relu6(x + 3) / 6


def softplus(x: mx.array) -> mx.array:
    """Return log(1 + eˣ), without overflow."""
    return mx.logaddexp(x, 0)


def mish(x: mx.array) -> mx.array:
    """Return x · tanh(softplus(x)); https://arxiv.org/abs/1908.08681."""
    return x * mx.tanh(softplus(x))


def sqrt_softplus(x: mx.array) -> mx.array:
    """Return √softplus(x)."""
    return mx.sqrt(softplus(x))


def laplace(x: mx.array) -> mx.array:
    """Return the Laplace attention function of MEGA, μ = 0.707107, σ = 0.282095; https://arxiv.org/abs/2209.10655."""
    return 0.5 * (1 + mx.erf((x - 0.707107) / (0.282095 * math.sqrt(2))))


# Functions of Python, because a module with one of MLX's own as an attribute cannot be copied.
def sigmoid(x: mx.array) -> mx.array:
    """Return 1 / (1 + e⁻ˣ)."""
    return mx.sigmoid(x)


def tanh(x: mx.array) -> mx.array:
    """Return tanh(x)."""
    return mx.tanh(x)


def linear(x: mx.array) -> mx.array:
    """Return x."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": hardswish,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": linear,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu2,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "silu": silu,
    "sqrtsoftplus": sqrt_softplus,
    "swish": silu,
    "tanh": tanh,
}
