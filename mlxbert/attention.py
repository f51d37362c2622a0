"""Bidirectional multi-head self-attention."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import Dropout
from mlxbert.activations import has_fast_softmax, softmax
from mlxbert.config import BertConfig


class BertSelfAttention(nn.Module):
    """softmax(Q Kᵀ / √Dh) V over H heads; transformers `BertSelfAttention`, https://arxiv.org/abs/1706.03762."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = config.head_size**-0.5
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self._has_dropout = config.attention_probs_dropout_prob > 0

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """(B, L, D) and a boolean mask that broadcasts to (B, H, L, L), True = attend.

        Returns the context (B, L, D) and, on request, the attention weights (B, H, L, L).
        """
        B, L, D = x.shape
        q, k, v = (self._split(projection(x)) for projection in (self.query, self.key, self.value))
        drops = self.training and self._has_dropout
        if output_attentions or drops or has_fast_softmax(x.dtype):
            # The fused kernel neither returns its weights nor drops any; MLX's CPU backend has none, and composes the
            # same operations with a softmax that alone would take a fifth of the forward pass.
            scores = (q * self.scale) @ k.swapaxes(-1, -2)  # (B, H, L, L)
            if mask is not None:
                scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
            weights = softmax(scores)
            context = self.dropout(weights) @ v
        else:
            weights = None
            context = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)
        context = context.swapaxes(1, 2).reshape(B, L, D)  # (B, H, L, Dh) -> (B, L, D)
        return context, weights if output_attentions else None

    def _split(self, x: mx.array) -> mx.array:
        B, L, _ = x.shape
        return x.reshape(B, L, self.num_heads, -1).swapaxes(1, 2)  # (B, H, L, Dh)


class BertSelfOutput(nn.Module):
    """LayerNorm(dense(context) + input)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, context: mx.array, x: mx.array) -> mx.array:
        """(B, L, D), (B, L, D) -> (B, L, D)."""
        return self.LayerNorm(self.dropout(self.dense(context)) + x)


class BertAttention(nn.Module):
    """Self-attention with its output layer; the attribute names are the checkpoint's."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertSelfOutput(config)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """(B, L, D) -> (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        context, weights = self.self(x, mask, output_attentions)
        return self.output(context, x), weights
