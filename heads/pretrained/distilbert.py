"""The heads that DistilBERT does not share with BERT; transformers `models/distilbert/modeling_distilbert.py`."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.bert import (
    Activation,
    Decode,
    Decoder,
    Dropout,
    LanguageModelHead,
    LayerNorm,
    PretrainedHead,
    SpanHead,
)


class DistilBertMaskedLMHead(LanguageModelHead):
    """`DistilBertForMaskedLM`: `logits` (B, L, V).

    LayerNorm(activation(dense(x))), then scores for every word; the names of the three modules have no common prefix.
    `vocab_projector` always has a bias of its own; its weight is tied to the word embeddings or its own.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        activation: Activation,
        layer_norm_eps: float,
        *,
        decoder_weight: bool = False,
    ):
        super().__init__()
        self.vocab_transform = nn.Linear(hidden_size, hidden_size)
        self.vocab_layer_norm = LayerNorm(hidden_size, eps=layer_norm_eps)
        self.vocab_projector = Decoder(hidden_size, vocab_size, weight=decoder_weight, bias=True)
        self._activation = activation

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        words = self.vocab_layer_norm(self._activation(self.vocab_transform(hidden)))
        return self.vocab_projector(words, decode)


class DistilBertClassificationHead(PretrainedHead):
    """`DistilBertForSequenceClassification`: `logits` (B, K) from the first token's hidden state.

    classifier(ReLU(pre_classifier(x))), with dropout before the classifier; ReLU whatever `activation` says.
    """

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0):
        super().__init__()
        self.pre_classifier = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, num_labels)
        self.dropout = Dropout(dropout)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, K)."""
        return {"logits": self.classifier(self.dropout(nn.relu(self.pre_classifier(hidden[:, 0]))))}


class DistilBertMultipleChoiceHead(DistilBertClassificationHead):
    """`DistilBertForMultipleChoice`: `logits` (B,), one score for each text; C consecutive texts are one question."""

    def __init__(self, hidden_size: int, dropout: float = 0.0):
        super().__init__(hidden_size, 1, dropout)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B,)."""
        return {"logits": super().__call__(hidden, pooled, decode)["logits"].squeeze(-1)}


class DistilBertSpanHead(SpanHead):
    """`DistilBertForQuestionAnswering`: `BertForQuestionAnswering` with dropout before it."""

    def __init__(self, hidden_size: int, dropout: float = 0.0):
        super().__init__(hidden_size)
        self.dropout = Dropout(dropout)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to the scores of the first and the last token, (B, L) each."""
        return super().__call__(self.dropout(hidden), pooled, decode)
