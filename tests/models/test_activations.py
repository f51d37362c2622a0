"""The activations are Hugging Face's, and GELU is exact: in every dtype, forward and backward."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
import torch
from scipy.special import ndtr
from transformers.activations import ACT2FN

from mlxbert import activations
from mlxbert.activations import ACTIVATIONS, gelu, gelu_tanh


def grid(limit: float = 12.0) -> np.ndarray:
    """Float32 numbers: dense in the middle, tiny ones of both signs, both zeros."""
    tiny = 10.0 ** np.arange(-38, 0, dtype=np.float64)
    dense = np.linspace(-limit, limit, 200_001)
    return np.concatenate([dense, tiny, -tiny, [0.0, -0.0]]).astype(np.float32)


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) * ndtr(x.astype(np.float64))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_equals_transformers(name: str) -> None:
    x = grid()
    ours = np.array(ACTIVATIONS[name](mx.array(x)))
    theirs = ACT2FN[name](torch.tensor(x)).numpy()
    assert np.isfinite(ours).all()
    assert (np.abs(ours - theirs) / np.maximum(1, np.abs(x))).max() <= 6e-7


def test_gelu_is_exact() -> None:
    """Against float64. Measured 2.1e-7; torch's own is off by 3.8e-7."""
    x = grid()
    error = np.abs(np.array(gelu(mx.array(x))).astype(np.float64) - exact_gelu(x))
    assert (error / np.maximum(1, np.abs(x))).max() <= 4e-7
    positive = x > 0
    assert (error[positive] / exact_gelu(x)[positive]).max() <= 4e-7
    small = (np.abs(x) < 0.5) & (np.abs(x) > 1e-37)  # on both sides of zero: nothing cancels there
    assert (error[small] / np.abs(exact_gelu(x)[small])).max() <= 5e-7


def test_gelu_saturates() -> None:
    x = mx.array([-3e38, -1e10, -100.0, -7.0, 7.0, 100.0, 1e10, 3e38, math.inf])
    assert gelu(x).tolist() == [0, 0, 0, 0, *x.tolist()[4:]]
    assert math.isnan(gelu(mx.array([math.nan])).item())


@pytest.mark.parametrize(("dtype", "half_unit"), [(mx.float16, 2**-11), (mx.bfloat16, 2**-8)])
def test_gelu_rounds_once_in_half_precision(dtype: mx.Dtype, half_unit: float) -> None:
    x = mx.array(grid()).astype(dtype)
    y = gelu(x)
    assert y.dtype == dtype
    wide = np.array(x.astype(mx.float32))
    error = np.abs(np.array(y.astype(mx.float32)) - exact_gelu(wide))
    float32_error = 4e-7 * np.maximum(1, np.abs(wide))
    assert (error <= half_unit * np.abs(exact_gelu(wide)) + float32_error).all()


@pytest.mark.parametrize(("dtype", "half_unit"), [(mx.float16, 2**-11), (mx.bfloat16, 2**-8)])
@pytest.mark.parametrize("name", ["gelu", "gelu_new"])
def test_the_kernel_of_half_precision_on_a_gpu_is_as_exact(
    name: str, dtype: mx.Dtype, half_unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on a CPU, too; there the usual path is what it is compared with, and the slope's rounding is wider."""
    function = ACTIVATIONS[name]
    x = mx.array(grid()).astype(dtype)

    def both() -> list[np.ndarray]:
        values = (function(x), mx.grad(lambda x: function(x).sum())(x))
        assert all(value.dtype == dtype for value in values)
        return [np.array(value.astype(mx.float32)) for value in values]

    expected = both()
    monkeypatch.setattr(activations, "_is_half_on_a_gpu", lambda x: True)
    for found, wanted in zip(both(), expected, strict=True):
        assert (np.abs(found - wanted) <= 2.1 * half_unit * np.abs(wanted) + 1e-6).all()


def test_gelu_takes_any_shape_and_layout() -> None:
    x = mx.array(grid(3)[:720]).reshape(6, 8, 15)
    expected = exact_gelu(np.array(x))
    for view, want in (
        (x.transpose(2, 0, 1), expected.transpose(2, 0, 1)),
        (x[::2, :, 3:], expected[::2, :, 3:]),
        (mx.broadcast_to(x[:1], (4, 8, 15)), np.broadcast_to(expected[:1], (4, 8, 15))),
        (x[0, 0, 0], expected[0, 0, 0]),
        (x[:0], expected[:0]),
    ):
        y = gelu(view)
        assert y.shape == want.shape
        np.testing.assert_allclose(np.array(y), want, atol=6e-7)


@pytest.mark.parametrize("transform", [lambda f: f, mx.compile, mx.checkpoint], ids=["plain", "compile", "checkpoint"])
def test_the_gradient_is_torchs(transform) -> None:
    x = grid()
    scale = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    ours = mx.grad(transform(lambda x: (gelu(x) * mx.array(scale)).sum()))(mx.array(x))
    theirs = torch.tensor(x, requires_grad=True)
    (torch.nn.functional.gelu(theirs) * torch.tensor(scale)).sum().backward()
    assert np.abs(np.array(ours) - theirs.grad.numpy()).max() <= 2e-6


def test_the_gradient_keeps_the_dtype() -> None:
    x = mx.array([-1.0, 0.5, 2.0], dtype=mx.bfloat16)
    gradient = mx.grad(lambda x: gelu(x).sum())(x)
    assert gradient.dtype == mx.bfloat16
    assert mx.allclose(gradient.astype(mx.float32), mx.grad(lambda x: gelu(x).sum())(x.astype(mx.float32)), atol=1e-2)


def exact_gelu_tanh(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_tanh_gelu_is_exact() -> None:
    """Against float64. Measured 1.9e-7; torch's own is off by 1.8e-7."""
    x = grid()
    error = np.abs(np.array(gelu_tanh(mx.array(x))).astype(np.float64) - exact_gelu_tanh(x))
    assert (error / np.maximum(1, np.abs(x))).max() <= 3e-7
    small = (np.abs(x) < 0.5) & (np.abs(x) > 1e-37)
    assert (error[small] / np.abs(exact_gelu_tanh(x)[small])).max() <= 5e-7


def test_tanh_gelu_saturates() -> None:
    x = np.array([-3e38, -1e10, -100.0, -7.0, 7.0, 100.0, 1e10, 3e38], np.float32)
    np.testing.assert_allclose(np.array(gelu_tanh(mx.array(x))) / np.abs(x), x > 0, atol=1e-7)
    assert gelu_tanh(mx.array([math.inf])).item() == math.inf
    assert math.isnan(gelu_tanh(mx.array([math.nan])).item())


def test_tanh_gelu_keeps_the_dtype() -> None:
    x = mx.array([-1.0, 0.5, 2.0], dtype=mx.bfloat16)
    assert gelu_tanh(x).dtype == mx.bfloat16
    assert mx.grad(lambda x: gelu_tanh(x).sum())(x).dtype == mx.bfloat16


@pytest.mark.parametrize("transform", [lambda f: f, mx.compile, mx.checkpoint], ids=["plain", "compile", "checkpoint"])
def test_the_gradient_of_tanh_gelu_is_torchs(transform) -> None:
    x = grid()
    scale = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    ours = mx.grad(transform(lambda x: (gelu_tanh(x) * mx.array(scale)).sum()))(mx.array(x))
    theirs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (torch.nn.functional.gelu(theirs, approximate="tanh") * torch.tensor(scale)).sum().backward()
    assert np.abs(np.array(ours) - theirs.grad.numpy()).max() <= 2e-6
