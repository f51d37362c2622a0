"""The heads that BERT is pre-trained with: masked words, the next sentence, and both together.

They follow transformers' `BertLMPredictionHead`, `BertOnlyNSPHead` and `BertPreTrainingHeads`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.base import Decode, PretrainedHead, require_pooled

Activation = Callable[[mx.array], mx.array]


class PredictionTransform(nn.Module):
    """LayerNorm(activation(dense(x)))."""

    def __init__(self, hidden_size: int, activation: Activation, layer_norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self._activation = activation

    def __call__(self, x: mx.array) -> mx.array:
        """(…, D) -> (…, D)."""
        return self.LayerNorm(self._activation(self.dense(x)))


class Decoder(nn.Module):
    """The decoder's own tensors: the weight (V, D), the bias (V,), or both; the missing one is tied."""

    def __init__(self, hidden_size: int, vocab_size: int, *, weight: bool, bias: bool):
        super().__init__()
        if weight:
            self.weight = mx.zeros((vocab_size, hidden_size))
        if bias:
            self.bias = mx.zeros((vocab_size,))


class Predictions(nn.Module):
    """The transform, then scores for every word of the vocabulary.

    transformers ties `decoder.weight` to the word embeddings and `decoder.bias` to `bias`. Where the checkpoint has a
    weight or a bias of the decoder itself, that one is used.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        activation: Activation,
        layer_norm_eps: float,
        *,
        bias: bool = True,
        decoder_weight: bool = False,
        decoder_bias: bool = False,
    ):
        super().__init__()
        self.transform = PredictionTransform(hidden_size, activation, layer_norm_eps)
        if bias:
            self.bias = mx.zeros((vocab_size,))
        if decoder_weight or decoder_bias:
            self.decoder = Decoder(hidden_size, vocab_size, weight=decoder_weight, bias=decoder_bias)

    def __call__(self, hidden: mx.array, decode: Decode) -> mx.array:
        """(…, D) -> (…, V)."""
        x = self.transform(hidden)
        decoder = self.decoder if "decoder" in self else nn.Module()
        logits = x @ decoder.weight.T if "weight" in decoder else decode(x)
        bias = decoder.bias if "bias" in decoder else self.bias
        return logits + bias


class MaskedLMHead(PretrainedHead):
    """`BertForMaskedLM` and `BertLMHeadModel`: `logits` (B, L, V)."""

    fields: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, predictions: Predictions):
        super().__init__()
        self.cls = nn.Module()
        self.cls.predictions = predictions

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """(…, D) -> (…, V)."""
        logits: mx.array = self.cls.predictions(hidden, decode)
        return logits

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, L, D) -> (B, L, V)."""
        return {"logits": self.word_logits(hidden, decode)}


class NextSentenceHead(PretrainedHead):
    """`BertForNextSentencePrediction`: `logits` (B, 2), for "is the next sentence" and "is a random one"."""

    fields: ClassVar[tuple[str, ...]] = ("logits",)
    needs_pooler: ClassVar[bool] = True

    def __init__(self, hidden_size: int):
        super().__init__()
        self.cls = nn.Module()
        self.cls.seq_relationship = nn.Linear(hidden_size, 2)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, D) -> (B, 2)."""
        return {"logits": self.cls.seq_relationship(require_pooled(pooled, self))}


class PretrainingHead(PretrainedHead):
    """`BertForPreTraining`: `prediction_logits` (B, L, V) and `seq_relationship_logits` (B, 2)."""

    fields: ClassVar[tuple[str, ...]] = ("prediction_logits", "seq_relationship_logits")
    needs_pooler: ClassVar[bool] = True

    def __init__(self, predictions: Predictions, hidden_size: int):
        super().__init__()
        self.cls = nn.Module()
        self.cls.predictions = predictions
        self.cls.seq_relationship = nn.Linear(hidden_size, 2)

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """(…, D) -> (…, V)."""
        logits: mx.array = self.cls.predictions(hidden, decode)
        return logits

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, L, D) -> (B, L, V), and (B, D) -> (B, 2)."""
        return {
            "prediction_logits": self.word_logits(hidden, decode),
            "seq_relationship_logits": self.cls.seq_relationship(require_pooled(pooled, self)),
        }
