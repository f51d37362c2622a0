"""The heads that RoBERTa does not share with BERT; transformers `RobertaLMHead` and `RobertaClassificationHead`."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.base import Decode, Dropout, PretrainedHead
from heads.pretrained.language_model import Activation, Decoder


class RobertaPredictions(nn.Module):
    """LayerNorm(activation(dense(x))), then scores for every word of the vocabulary.

    The decoder's weight is tied to the word embeddings and its bias to `bias`; the decoder's own counts where the
    checkpoint has one.
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
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.layer_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self._activation = activation
        if bias:
            self.bias = mx.zeros((vocab_size,))
        if decoder_weight or decoder_bias:
            self.decoder = Decoder(hidden_size, vocab_size, weight=decoder_weight, bias=decoder_bias)

    def __call__(self, hidden: mx.array, decode: Decode) -> mx.array:
        """(…, D) -> (…, V)."""
        x = self.layer_norm(self._activation(self.dense(hidden)))
        decoder = self.decoder if "decoder" in self else nn.Module()
        logits = x @ decoder.weight.T if "weight" in decoder else decode(x)
        bias: mx.array = decoder.bias if "bias" in decoder else self.bias
        return logits + bias


class RobertaMaskedLMHead(PretrainedHead):
    """`RobertaForMaskedLM` and `RobertaForCausalLM`: `logits` (B, L, V)."""

    fields: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, predictions: RobertaPredictions):
        super().__init__()
        self.lm_head = predictions

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """(…, D) -> (…, V)."""
        logits: mx.array = self.lm_head(hidden, decode)
        return logits

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, L, D) -> (B, L, V)."""
        return {"logits": self.word_logits(hidden, decode)}


class _Classifier(nn.Module):
    """out_proj(tanh(dense(x))), with dropout before each."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, D) -> (B, K)."""
        return self.out_proj(self.dropout(mx.tanh(self.dense(self.dropout(x)))))


class RobertaClassificationHead(PretrainedHead):
    """`RobertaForSequenceClassification`: `logits` (B, K), from the first token's hidden state."""

    fields: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0):
        super().__init__()
        self.classifier = _Classifier(hidden_size, num_labels, dropout)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, L, D) -> (B, K)."""
        return {"logits": self.classifier(hidden[:, 0])}
