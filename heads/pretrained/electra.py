"""The heads that ELECTRA does not share with BERT; transformers `models/electra/modeling_electra.py`.

`ElectraForSequenceClassification` is `heads.pretrained.roberta.RobertaClassificationHead` with GELU.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.bert import Activation, Decode, Decoder, Dropout, LanguageModelHead, LayerNorm, PretrainedHead

SUMMARIES = ("first", "last", "mean", "cls_index")
"""The vectors of a text that `summary_type` names; without an index, "cls_index" is "last", as in transformers."""


class _Discriminator(nn.Module):
    """dense_prediction(activation(dense(x)))."""

    def __init__(self, hidden_size: int, activation: Activation):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dense_prediction = nn.Linear(hidden_size, 1)
        self._activation = activation

    def __call__(self, hidden: mx.array) -> mx.array:
        """Map (B, L, D) to (B, L)."""
        return self.dense_prediction(self._activation(self.dense(hidden))).squeeze(-1)


class ElectraDiscriminatorHead(PretrainedHead):
    """`ElectraForPreTraining`: `logits` (B, L), above 0 for a token that was replaced."""

    def __init__(self, hidden_size: int, activation: Activation):
        super().__init__()
        self.discriminator_predictions = _Discriminator(hidden_size, activation)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, L)."""
        return {"logits": self.discriminator_predictions(hidden)}


class _Generator(nn.Module):
    """LayerNorm(activation(dense(x))), D -> E."""

    def __init__(self, hidden_size: int, embedding_size: int, activation: Activation, layer_norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, embedding_size)
        self.LayerNorm = LayerNorm(embedding_size, eps=layer_norm_eps)
        self._activation = activation

    def __call__(self, hidden: mx.array) -> mx.array:
        """Map (…, D) to (…, E)."""
        return self.LayerNorm(self._activation(self.dense(hidden)))


class ElectraMaskedLMHead(LanguageModelHead):
    """`ElectraForMaskedLM`, the generator: `logits` (B, L, V).

    `generator_lm_head` always has a bias of its own; its weight is tied to the word embeddings or its own.
    """

    def __init__(
        self,
        hidden_size: int,
        embedding_size: int,
        vocab_size: int,
        activation: Activation,
        layer_norm_eps: float,
        *,
        decoder_weight: bool = False,
    ):
        super().__init__()
        self.generator_predictions = _Generator(hidden_size, embedding_size, activation, layer_norm_eps)
        self.generator_lm_head = Decoder(embedding_size, vocab_size, weight=decoder_weight, bias=True)

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        logits: mx.array = self.generator_lm_head(self.generator_predictions(hidden), decode)
        return logits


class _Summary(nn.Module):
    """One vector for a text: activation(summary(x)), with dropout before and after; `ElectraSequenceSummary`."""

    def __init__(
        self,
        hidden_size: int,
        kind: str,
        *,
        has_projection: bool,
        activation: Activation | None,
        first_dropout: float,
        last_dropout: float,
    ):
        super().__init__()
        if has_projection:
            self.summary = nn.Linear(hidden_size, hidden_size)
        self.first_dropout = Dropout(first_dropout)
        self.last_dropout = Dropout(last_dropout)
        self._kind = kind
        self._activation = activation

    def __call__(self, hidden: mx.array) -> mx.array:
        """Map (B, L, D) to (B, D); "last" and "mean" include padding, as in transformers."""
        at = 0 if self._kind == "first" else -1
        x = self.first_dropout(hidden.mean(axis=1) if self._kind == "mean" else hidden[:, at])
        if "summary" in self:
            x = self.summary(x)
        return self.last_dropout(x if self._activation is None else self._activation(x))


class ElectraMultipleChoiceHead(PretrainedHead):
    """`ElectraForMultipleChoice`: `logits` (B,), one score for each text; C consecutive texts are one question."""

    def __init__(
        self,
        hidden_size: int,
        summary_type: str = "first",
        *,
        has_projection: bool = True,
        activation: Activation | None = None,
        first_dropout: float = 0.0,
        last_dropout: float = 0.0,
    ):
        """Make an empty head.

        Args:
            hidden_size: of the encoder.
            summary_type: one of `SUMMARIES`.
            has_projection: whether the summary has a linear layer.
            activation: of the summary; None: none.
            first_dropout, last_dropout: before the summary's linear layer, and after its activation.
        """
        super().__init__()
        self.sequence_summary = _Summary(
            hidden_size,
            summary_type,
            has_projection=has_projection,
            activation=activation,
            first_dropout=first_dropout,
            last_dropout=last_dropout,
        )
        self.classifier = nn.Linear(hidden_size, 1)
        self.reads_padding = summary_type != "first"

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B,)."""
        return {"logits": self.classifier(self.sequence_summary(hidden)).squeeze(-1)}
