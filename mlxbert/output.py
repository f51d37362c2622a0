"""`BertOutput`: what the encoder returns."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlxbert.pooling import pool


@dataclass(frozen=True)
class BertOutput:
    """What `BertCore` returns; the field names are transformers' own.

    Attributes:
        last_hidden_state: (B, L, D).
        pooler_output: (B, D), tanh of the first token's dense layer; None for an encoder without a pooler.
        hidden_states: on request, embeddings and each layer's output: num_hidden_layers + 1 arrays (B, L, D).
        attentions: on request, each layer's attention weights after softmax, (B, H, L, L).
    """

    last_hidden_state: mx.array
    pooler_output: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None

    def pool(self, strategy: str = "mean", mask: mx.array | None = None) -> mx.array:
        """One vector a text, (B, D); `mask` (B, L) is 1 for real tokens. See `mlxbert.pooling.POOLING`."""
        return pool(strategy, self.last_hidden_state, mask, self.pooler_output)
