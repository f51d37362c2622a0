"""Word, position and token-type embeddings."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlxbert.config import BertConfig


class BertEmbeddings(nn.Module):
    """LayerNorm(word + token type + position); transformers `BertEmbeddings`."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: mx.array,
        token_type_ids: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """Ids (B, L) to embeddings (B, L, D); types default to 0, positions to 0 … L − 1."""
        if token_type_ids is None:
            token_type_ids = mx.zeros_like(input_ids)
        if position_ids is None:
            position_ids = mx.arange(input_ids.shape[1])[None]
        # The order of the sum is upstream's: float addition is not associative, and parity is measured in ulps.
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(x + self.position_embeddings(position_ids)))
