"""The heads of transformers' `BertFor*` classes, and the base class of every checkpoint's own head.

They follow `BertForSequenceClassification`, `BertForTokenClassification`, `BertForMultipleChoice`,
`BertForQuestionAnswering`, `BertLMPredictionHead`, `BertOnlyNSPHead` and `BertPreTrainingHeads`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.arrays import row_sum
from heads.dropout import Dropout
from heads.errors import HeadError

Activation = Callable[[mx.array], mx.array]
Decode = Callable[[mx.array], mx.array]
"""Multiplies hidden states by the transposed word embedding: (…, D) -> (…, V), without a bias."""


class PretrainedHead(nn.Module):
    """A head of one of transformers' `…For…` classes.

    Attributes:
        fields: the names of its outputs, the same as in transformers.
        needs_pooler: whether the head reads the pooler's output.
        reads_padding: whether the logits of a text change with the padding behind it, in transformers too.
    """

    fields: ClassVar[tuple[str, ...]] = ("logits",)
    needs_pooler: ClassVar[bool] = False
    reads_padding: bool = False

    def pool(self, hidden: mx.array, pooled: mx.array | None, mask: mx.array | None) -> mx.array | None:
        """Return the vector of each text that the head reads, (B, D): the pooler's output, unless the head pools.

        Args:
            hidden: (B, L, D), the encoder's last hidden state.
            pooled: (B, D), the pooler's output; None for an encoder without a pooler.
            mask: (B, L), 1 for real tokens; None: all are real.
        """
        return pooled

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Return the logits by field.

        Args:
            hidden: (B, L, D), the encoder's last hidden state.
            pooled: (B, D), what `pool` returned; None for an encoder without a pooler. A head that needs it raises.
            decode: the tied decoder of a masked-LM head; other heads do not call it.
        """
        raise NotImplementedError

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Return a language-model head's scores for every word, (…, D) -> (…, V); no other head has this method."""
        raise NotImplementedError


def require_pooled(pooled: mx.array | None, head: PretrainedHead) -> mx.array:
    """Return the pooler's output; raise HeadError if there is none."""
    if pooled is None:
        raise HeadError(f"{type(head).__name__} reads the pooler's output: the encoder has none; fix: add a pooler")
    return pooled


class LayerNorm(nn.LayerNorm):
    """`mlx.nn.LayerNorm`; on the CPU in float32 more exact and faster, by `row_sum`."""

    def __call__(self, x: mx.array) -> mx.array:
        """Map (…, D) to (…, D): mean 0 and variance 1, then times `weight`, plus `bias`."""
        if x.dtype != mx.float32 or mx.default_device() != mx.cpu:
            return super().__call__(x)
        share = 1 / x.shape[-1]
        centred = x - row_sum(x) * share
        y = centred * mx.rsqrt(row_sum(centred * centred) * share + self.eps)
        if "weight" in self:
            y = y * self.weight
        return y + self.bias if "bias" in self else y


class _LinearHead(PretrainedHead):
    """Dropout and a linear layer."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)


class SequenceClassificationHead(_LinearHead):
    """`BertForSequenceClassification`: `logits` (B, K) for single-label, multi-label and regression alike.

    What a logit means (`problem_type`) is for who reads it: see `mlxbert.pipelines.texts`.
    """

    needs_pooler: ClassVar[bool] = True

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, D) to (B, K)."""
        return {"logits": self.classifier(self.dropout(require_pooled(pooled, self)))}


class TokenClassificationHead(_LinearHead):
    """`BertForTokenClassification`: `logits` (B, L, K)."""

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, L, K)."""
        return {"logits": self.classifier(self.dropout(hidden))}


class MultipleChoiceHead(_LinearHead):
    """`BertForMultipleChoice`: `logits` (B,), one score for each text; C consecutive texts are one question."""

    needs_pooler: ClassVar[bool] = True

    def __init__(self, hidden_size: int, dropout: float = 0.0):
        super().__init__(hidden_size, 1, dropout)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, D) to (B,)."""
        return {"logits": self.classifier(self.dropout(require_pooled(pooled, self))).squeeze(-1)}


class SpanHead(PretrainedHead):
    """`BertForQuestionAnswering`: `start_logits` and `end_logits`, (B, L) each."""

    fields: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")

    def __init__(self, hidden_size: int):
        super().__init__()
        self.qa_outputs = nn.Linear(hidden_size, 2)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to the scores of the first and the last token, (B, L) each."""
        logits = self.qa_outputs(hidden)  # (B, L, 2)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


class PredictionTransform(nn.Module):
    """LayerNorm(activation(dense(x)))."""

    def __init__(self, hidden_size: int, width: int, activation: Activation, layer_norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, width)
        self.LayerNorm = LayerNorm(width, eps=layer_norm_eps)
        self._activation = activation

    def __call__(self, x: mx.array) -> mx.array:
        """Map (…, D) to (…, E)."""
        return self.LayerNorm(self._activation(self.dense(x)))


class Decoder(nn.Module):
    """The decoder's own tensors: the weight (V, D), the bias (V,), or both; the missing one is tied."""

    def __init__(self, hidden_size: int, vocab_size: int, *, weight: bool, bias: bool):
        super().__init__()
        if weight:
            self.weight = mx.zeros((vocab_size, hidden_size))
        if bias:
            self.bias = mx.zeros((vocab_size,))

    def __call__(self, x: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V), by the word embeddings if there is no weight, without a bias if there is none."""
        logits = x @ self.weight.T if "weight" in self else decode(x)
        return logits + self.bias if "bias" in self else logits


class WordScores(nn.Module):
    """Scores for every word of the vocabulary.

    transformers ties `decoder.weight` to the word embeddings and `decoder.bias` to `bias`. Where the checkpoint has a
    weight or a bias of the decoder itself, that one is used.
    """

    def add_decoder(
        self, hidden_size: int, vocab_size: int, *, bias: bool, decoder_weight: bool, decoder_bias: bool
    ) -> None:
        """Add the tensors that the checkpoint has."""
        if bias:
            self.bias = mx.zeros((vocab_size,))
        if decoder_weight or decoder_bias:
            self.decoder = Decoder(hidden_size, vocab_size, weight=decoder_weight, bias=decoder_bias)

    def scores(self, x: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        logits: mx.array = self.decoder(x, decode) if "decoder" in self else decode(x)
        has_own_bias = "decoder" in self and "bias" in self.decoder
        return logits if has_own_bias else logits + self.bias


class Predictions(WordScores):
    """The transform, then scores for every word of the vocabulary."""

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
        embedding_size: int | None = None,
    ):
        super().__init__()
        width = embedding_size or hidden_size
        self.transform = PredictionTransform(hidden_size, width, activation, layer_norm_eps)
        self.add_decoder(width, vocab_size, bias=bias, decoder_weight=decoder_weight, decoder_bias=decoder_bias)

    def __call__(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        return self.scores(self.transform(hidden), decode)


class LanguageModelHead(PretrainedHead):
    """A masked language model's head: `logits` (B, L, V); a subclass has `word_logits`."""

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, L, V)."""
        return {"logits": self.word_logits(hidden, decode)}


class MaskedLMHead(LanguageModelHead):
    """`BertForMaskedLM`: `logits` (B, L, V)."""

    def __init__(self, predictions: Predictions):
        super().__init__()
        self.cls = nn.Module()
        self.cls.predictions = predictions

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        logits: mx.array = self.cls.predictions(hidden, decode)
        return logits


class NextSentenceHead(PretrainedHead):
    """`BertForNextSentencePrediction`: `logits` (B, 2), for "is the next sentence" and "is a random one"."""

    needs_pooler: ClassVar[bool] = True

    def __init__(self, hidden_size: int):
        super().__init__()
        self.cls = nn.Module()
        self.cls.seq_relationship = nn.Linear(hidden_size, 2)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, D) to (B, 2)."""
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
        """Map (…, D) to (…, V)."""
        logits: mx.array = self.cls.predictions(hidden, decode)
        return logits

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, L, V), and (B, D) to (B, 2)."""
        return {
            "prediction_logits": self.word_logits(hidden, decode),
            "seq_relationship_logits": self.cls.seq_relationship(require_pooled(pooled, self)),
        }
