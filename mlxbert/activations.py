"""The activation functions that Hugging Face configurations name.

Formulas: transformers `src/transformers/activations.py` (`ACT2FN`). Names that share a formula share a function;
`prelu` and `xielu` have weights of their own, which no BERT checkpoint carries, and are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

Activation = Callable[[mx.array], mx.array]


def gelu(x: mx.array) -> mx.array:
    """x · Φ(x) with the exact normal distribution function; https://arxiv.org/abs/1606.08415."""
    return x * 0.5 * (1 + mx.erf(x * (1 / math.sqrt(2))))


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
