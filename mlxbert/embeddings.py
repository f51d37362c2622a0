"""Word, position and token-type embeddings."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import Dropout
from mlxbert.config import BertConfig
from mlxbert.model_inputs import embedded


class BertEmbeddings(nn.Module):
    """LayerNorm(word + token type + position); transformers `BertEmbeddings`."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: mx.array,
        token_type_ids: mx.array | None = None,
        position_ids: mx.array | None = None,
    ) -> mx.array:
        """Ids (B, L) to embeddings (B, L, D); types default to 0, positions to 0 … L − 1.

        Raises:
            InputError: an id that its table does not have; NaN instead while the call is traced.
        """
        words = embedded("input_ids", self.word_embeddings, input_ids)
        if token_type_ids is None:
            types = self.token_type_embeddings(mx.zeros_like(input_ids))
        else:
            types = embedded("token_type_ids", self.token_type_embeddings, token_type_ids)
        if position_ids is None:
            positions = self.position_embeddings(mx.arange(input_ids.shape[1])[None])
        else:
            positions = embedded("position_ids", self.position_embeddings, position_ids)
        # The order of the sum is upstream's: float addition is not associative, and parity is measured in ulps.
        return self.dropout(self.LayerNorm(words + types + positions))
