"""Attention over heads, as most encoders compute it; https://arxiv.org/abs/1706.03762."""

from __future__ import annotations

import mlx.core as mx

from heads.pretrained import Dropout
from mlxbert.activations import has_fast_softmax, softmax


def split_heads(x: mx.array, heads: int) -> mx.array:
    """Map (B, L, D) to (B, H, L, Dh)."""
    B, L, _ = x.shape
    return x.reshape(B, L, heads, -1).swapaxes(1, 2)


def merge_heads(x: mx.array) -> mx.array:
    """Map (B, H, L, Dh) to (B, L, D)."""
    B, _, L, _ = x.shape
    return x.swapaxes(1, 2).reshape(B, L, -1)


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: mx.array | None,
    dropout: Dropout,
    output_attentions: bool = False,
    bias: mx.array | None = None,
) -> tuple[mx.array, mx.array | None]:
    """Return softmax(scale · Q Kᵀ + bias) V, (B, H, L, Dh), and on request the weights, (B, H, L, L).

    Args:
        q, k, v: (B, H, L, Dh).
        scale: factor of the scores.
        mask: boolean, broadcasts to (B, H, L, L), True = attend; None: attend to all.
        dropout: of the weights.
        output_attentions: also return the weights, before dropout.
        bias: added to the scores; broadcasts to (B, H, L, L).
    """
    in_training = dropout.training and (dropout.drops or bias is not None)
    if output_attentions or in_training or has_fast_softmax(q.dtype):
        # The fused kernel neither returns its weights nor drops any, and gives a bias no gradient on CUDA. MLX's CPU
        # backend has no such kernel: it runs the same operations with a softmax that alone would take a fifth of the
        # forward pass.
        scores = (q * scale) @ k.swapaxes(-1, -2)  # (B, H, L, L)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        weights = softmax(scores)
        return dropout(weights) @ v, weights if output_attentions else None
    if bias is not None:
        # Half of the least number, because the kernel multiplies by log2(e), which must not overflow.
        mask = bias if mask is None else mx.where(mask, bias, mx.array(mx.finfo(q.dtype).min / 2, q.dtype))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask), None
