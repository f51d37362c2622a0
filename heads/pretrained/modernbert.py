"""The heads of transformers' `ModernBertFor*` classes; `models/modernbert/modeling_modernbert.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
    require_pooled,
)


@dataclass(frozen=True)
class HeadSettings:
    """Settings that all of these heads share.

    Attributes:
        hidden_size: D.
        activation: between dense layer and norm.
        norm_eps, norm_bias: of the norm.
        dense_bias: whether the dense layer has a bias.
        pooling: "cls" or "mean", for one vector a text.
        dropout: before the classifier.
    """

    hidden_size: int
    activation: Activation
    norm_eps: float
    norm_bias: bool
    dense_bias: bool
    pooling: str = "cls"
    dropout: float = 0.0


class PredictionHead(nn.Module):
    """LayerNorm(activation(dense(x))); transformers `ModernBertPredictionHead`."""

    def __init__(self, settings: HeadSettings):
        super().__init__()
        self.dense = nn.Linear(settings.hidden_size, settings.hidden_size, bias=settings.dense_bias)
        self.norm = LayerNorm(settings.hidden_size, eps=settings.norm_eps, bias=settings.norm_bias)
        self._activation = settings.activation

    def __call__(self, x: mx.array) -> mx.array:
        """Map (…, D) to (…, D)."""
        return self.norm(self._activation(self.dense(x)))


class ModernBertMaskedLMHead(LanguageModelHead):
    """`ModernBertForMaskedLM`: `logits` (B, L, V).

    The decoder's weight is the word embeddings', if the checkpoint has none of its own.
    """

    def __init__(self, settings: HeadSettings, vocab_size: int, *, weight: bool, bias: bool):
        super().__init__()
        self.head = PredictionHead(settings)
        if weight or bias:
            self.decoder = Decoder(settings.hidden_size, vocab_size, weight=weight, bias=bias)

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        x = self.head(hidden)
        decoder = self.decoder if "decoder" in self else nn.Module()
        logits = x @ decoder.weight.T if "weight" in decoder else decode(x)
        return logits + decoder.bias if "bias" in decoder else logits


class ModernBertClassifier(PretrainedHead):
    """The prediction head, dropout and a linear layer.

    Attributes:
        outputs: the number of its outputs; None: as many as there are labels.
    """

    outputs: ClassVar[int | None] = None

    def __init__(self, settings: HeadSettings, num_labels: int):
        super().__init__()
        self.head = PredictionHead(settings)
        self.drop = Dropout(settings.dropout)
        self.classifier = nn.Linear(settings.hidden_size, self.outputs or num_labels)
        self._pooling = settings.pooling

    def scores(self, x: mx.array) -> mx.array:
        """Map (…, D) to (…, K)."""
        return self.classifier(self.drop(self.head(x)))


class ModernBertSequenceHead(ModernBertClassifier):
    """`ModernBertForSequenceClassification`: `logits` (B, K)."""

    def pool(self, hidden: mx.array, pooled: mx.array | None, mask: mx.array | None) -> mx.array:
        """Return the first token's hidden state, or the mean of the real tokens', (B, D)."""
        return _mean(hidden, mask) if self._pooling == "mean" else hidden[:, 0]

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, D) to (B, K)."""
        return {"logits": self.scores(require_pooled(pooled, self))}


class ModernBertChoiceHead(ModernBertClassifier):
    """`ModernBertForMultipleChoice`: one score for each text, `logits` (B,)."""

    outputs: ClassVar[int | None] = 1

    def pool(self, hidden: mx.array, pooled: mx.array | None, mask: mx.array | None) -> mx.array:
        """Return the first real token's hidden state, or the mean of the real tokens', (B, D)."""
        if self._pooling == "mean":
            return _mean(hidden, mask)
        if mask is None:
            return hidden[:, 0]
        first = mx.argmax(mask != 0, axis=1)  # with padding on the left, it is not the first one
        return mx.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, D) to (B,)."""
        return {"logits": self.scores(require_pooled(pooled, self)).squeeze(-1)}


class ModernBertTokenHead(ModernBertClassifier):
    """`ModernBertForTokenClassification`: `logits` (B, L, K)."""

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, L, K)."""
        return {"logits": self.scores(hidden)}


class ModernBertSpanHead(ModernBertClassifier):
    """`ModernBertForQuestionAnswering`: `start_logits` and `end_logits`, (B, L) each."""

    fields: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")

    outputs: ClassVar[int | None] = 2

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to the scores of the first and the last token, (B, L) each."""
        logits = self.scores(hidden)  # (B, L, 2)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


def _mean(hidden: mx.array, mask: mx.array | None) -> mx.array:
    """Return the mean hidden state of the real tokens, (B, D); 0 for a text without any."""
    if mask is None:
        mask = mx.ones(hidden.shape[:2])
    weights = mask.astype(mx.float32)[
        ..., None
    ]  # (B, L, 1); float32, because a sum of half-precision numbers is rough
    return ((hidden * weights).sum(axis=1) / mx.maximum(weights.sum(axis=1), 1)).astype(hidden.dtype)
