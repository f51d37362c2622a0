"""The heads that ALBERT does not share with BERT; transformers `AlbertMLMHead` and `AlbertSOPHead`."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.bert import (
    Activation,
    Decode,
    Dropout,
    LanguageModelHead,
    LayerNorm,
    WordScores,
    require_pooled,
)


class AlbertPredictions(WordScores):
    """LayerNorm(activation(dense(x))), as wide as the embeddings, then scores for every word of the vocabulary."""

    def __init__(
        self,
        hidden_size: int,
        embedding_size: int,
        vocab_size: int,
        activation: Activation,
        layer_norm_eps: float,
        *,
        bias: bool = True,
        decoder_weight: bool = False,
        decoder_bias: bool = False,
    ):
        super().__init__()
        self.dense = nn.Linear(hidden_size, embedding_size)
        self.LayerNorm = LayerNorm(embedding_size, eps=layer_norm_eps)
        self._activation = activation
        self.add_decoder(
            embedding_size, vocab_size, bias=bias, decoder_weight=decoder_weight, decoder_bias=decoder_bias
        )

    def __call__(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        return self.scores(self.LayerNorm(self._activation(self.dense(hidden))), decode)


class AlbertMaskedLMHead(LanguageModelHead):
    """`AlbertForMaskedLM`: `logits` (B, L, V)."""

    def __init__(self, predictions: AlbertPredictions):
        super().__init__()
        self.predictions = predictions

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        logits: mx.array = self.predictions(hidden, decode)
        return logits


class _SentenceOrder(nn.Module):
    """classifier(dropout(x)); transformers `AlbertSOPHead`."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, D) to (B, K)."""
        return self.classifier(self.dropout(x))


class AlbertPretrainingHead(AlbertMaskedLMHead):
    """`AlbertForPreTraining`: `prediction_logits` (B, L, V) and `sop_logits` (B, K).

    K is `num_labels`, as upstream; pre-training has two, for "in this order" and "swapped".
    """

    fields: ClassVar[tuple[str, ...]] = ("prediction_logits", "sop_logits")
    needs_pooler: ClassVar[bool] = True

    def __init__(self, predictions: AlbertPredictions, hidden_size: int, num_labels: int = 2, dropout: float = 0.0):
        super().__init__(predictions)
        self.sop_classifier = _SentenceOrder(hidden_size, num_labels, dropout)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, L, V), and (B, D) to (B, K)."""
        return {
            "prediction_logits": self.word_logits(hidden, decode),
            "sop_logits": self.sop_classifier(require_pooled(pooled, self)),
        }
