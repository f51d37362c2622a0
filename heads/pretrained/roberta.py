"""The heads that RoBERTa does not share with BERT; transformers `RobertaLMHead` and `RobertaClassificationHead`."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.bert import Activation, Decode, Dropout, LanguageModelHead, LayerNorm, PretrainedHead, WordScores


class RobertaPredictions(WordScores):
    """LayerNorm(activation(dense(x))), then scores for every word of the vocabulary."""

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
        self.layer_norm = LayerNorm(hidden_size, eps=layer_norm_eps)
        self._activation = activation
        self.add_decoder(hidden_size, vocab_size, bias=bias, decoder_weight=decoder_weight, decoder_bias=decoder_bias)

    def __call__(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        return self.scores(self.layer_norm(self._activation(self.dense(hidden))), decode)


class RobertaMaskedLMHead(LanguageModelHead):
    """`RobertaForMaskedLM`: `logits` (B, L, V)."""

    def __init__(self, predictions: RobertaPredictions):
        super().__init__()
        self.lm_head = predictions

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        logits: mx.array = self.lm_head(hidden, decode)
        return logits


def _tanh(x: mx.array) -> mx.array:
    return mx.tanh(x)  # a model that holds `mx.tanh` itself cannot be copied


class _Classifier(nn.Module):
    """out_proj(activation(dense(x))), with dropout before each."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float, activation: Activation):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)
        self._activation = activation

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, D) to (B, K)."""
        return self.out_proj(self.dropout(self._activation(self.dense(self.dropout(x)))))


class RobertaClassificationHead(PretrainedHead):
    """`RobertaForSequenceClassification`: `logits` (B, K), from the first token's hidden state.

    RoBERTa's activation is tanh.
    """

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0, activation: Activation = _tanh):
        super().__init__()
        self.classifier = _Classifier(hidden_size, num_labels, dropout, activation)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, K)."""
        return {"logits": self.classifier(hidden[:, 0])}
