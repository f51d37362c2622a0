"""The activation functions that Hugging Face configurations name.

Formulas: transformers `src/transformers/activations.py` (`ACT2FN`). Names that share a formula share a function;
`prelu` and `xielu` have weights of their own, which no BERT checkpoint carries, and are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import mlx.core as mx

from mlxbert.activations.exponential import exp_nonpositive
from mlxbert.activations.fused import fused

Activation = Callable[[mx.array], mx.array]


# (Φ(z) − ½) / z = P(z²) / Q(z²) for |z| ≤ 5.6, beyond which Φ is 0 or 1 in float32: minimax, fitted in 40 digits with
# iteratively reweighted least squares; the error of Φ is 9e-9, a sixth of float32's rounding.
_CDF_LIMIT = 5.6
_CDF_P = (0.398942222, 0.0343756687, 0.00470722666, 0.000173845394, 6.35641952e-06, 2.21452057e-08)
_CDF_Q = (1.0, 0.252832737, 0.0289398216, 0.00191294865, 7.50998021e-05, 1.18020039e-06)


def gelu(x: mx.array) -> mx.array:
    """x · Φ(x) with the exact normal distribution function; https://arxiv.org/abs/1606.08415.

    Computed in float32 whatever the dtype, as torch does. Φ is a rational function instead of `mx.erf`, which on the
    CPU is a scalar call for every element, 25 ns, and would take half of a forward pass. Its error is that of float32
    arithmetic, torch's own being the same, so that it serves every device.
    """
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


@fused(_CDF_LIMIT)
def _gelu_fused(x: mx.array, limit: mx.array) -> list[mx.array]:
    size = mx.abs(x)
    z = mx.minimum(size, limit)
    p, q = _cdf_fraction(z)
    # z over 256, because p reaches 18 and the product is not to overflow before the division.
    return [0.5 * x + size * (z * 2**-8) * p / (q * 2**-8)]


@fused(_CDF_LIMIT)
def _cdf_fused(x: mx.array, limit: mx.array) -> list[mx.array]:
    z = mx.clip(x, -limit, limit)
    p, q = _cdf_fraction(z)
    return [0.5 + z * p / q, -0.5 * (x * x)]


def _cdf_fraction(z: mx.array) -> tuple[mx.array, mx.array]:
    """P(z²) and Q(z²), by Estrin's scheme: Horner's is a longer path, which `fused` would have to cut."""
    t = z * z
    t2 = t * t
    t4 = t2 * t2

    def polynomial(c: tuple[float, ...]) -> mx.array:
        return (c[0] + c[1] * t) + (c[2] + c[3] * t) * t2 + (c[4] + c[5] * t) * t4

    return polynomial(_CDF_P), polynomial(_CDF_Q)


def gelu_tanh(x: mx.array) -> mx.array:
    """The tanh approximation of GELU; not `mlx.nn.gelu_approx`'s sigmoid form, which is off by 4e-4."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def quick_gelu(x: mx.array) -> mx.array:
    """x · sigmoid(1.702 x)."""
    return x * mx.sigmoid(1.702 * x)


def gelu_10(x: mx.array) -> mx.array:
    """GELU clipped to [−10, 10]; https://arxiv.org/abs/2004.09602."""
    return mx.clip(gelu(x), -10, 10)


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x)."""
    return x * mx.sigmoid(x)


def relu(x: mx.array) -> mx.array:
    """max(x, 0)."""
    return mx.maximum(x, 0)


def relu2(x: mx.array) -> mx.array:
    """max(x, 0)²; https://arxiv.org/abs/2109.08668."""
    return mx.square(relu(x))


def relu6(x: mx.array) -> mx.array:
    """min(max(x, 0), 6)."""
    return mx.clip(x, 0, 6)


def leaky_relu(x: mx.array) -> mx.array:
    """x where positive, 0.01 x elsewhere (torch's default slope)."""
    return mx.maximum(x, 0.01 * x)


def hardswish(x: mx.array) -> mx.array:
    """x · relu6(x + 3) / 6."""
    return x * relu6(x + 3) / 6


def softplus(x: mx.array) -> mx.array:
    """log(1 + eˣ), without overflow."""
    return mx.logaddexp(x, 0)


def mish(x: mx.array) -> mx.array:
    """x · tanh(softplus(x)); https://arxiv.org/abs/1908.08681."""
    return x * mx.tanh(softplus(x))


def sqrt_softplus(x: mx.array) -> mx.array:
    """√softplus(x)."""
    return mx.sqrt(softplus(x))


def laplace(x: mx.array) -> mx.array:
    """Laplace attention function of MEGA, μ = 0.707107, σ = 0.282095; https://arxiv.org/abs/2209.10655."""
    return 0.5 * (1 + mx.erf((x - 0.707107) / (0.282095 * math.sqrt(2))))


def linear(x: mx.array) -> mx.array:
    """The identity."""
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
    "sigmoid": mx.sigmoid,
    "silu": silu,
    "sqrtsoftplus": sqrt_softplus,
    "swish": silu,
    "tanh": mx.tanh,
}
