"""The heads that DeBERTa-v2 does not share with BERT; transformers `ContextPooler` and `DebertaV2LMPredictionHead`."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.bert import Activation, Decode, Dropout, LanguageModelHead, LayerNorm, PretrainedHead, WordScores


class ContextPooler(nn.Module):
    """activation(dense(first token)), with dropout before it: this pooler belongs to the head, not to the encoder."""

    def __init__(self, hidden_size: int, activation: Activation, dropout: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self._activation = activation

    def __call__(self, hidden: mx.array) -> mx.array:
        """Map (B, L, D) to (B, D)."""
        return self._activation(self.dense(self.dropout(hidden[:, 0])))


class DebertaV2SequenceHead(PretrainedHead):
    """`DebertaV2ForSequenceClassification`: `logits` (B, K), from the head's own pooler."""

    def __init__(self, pooler: ContextPooler, hidden_size: int, num_labels: int, dropout: float):
        super().__init__()
        self.pooler = pooler
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B, K)."""
        return {"logits": self.classifier(self.dropout(self.pooler(hidden)))}


class DebertaV2ChoiceHead(DebertaV2SequenceHead):
    """`DebertaV2ForMultipleChoice`: `logits` (B,), one score for each text; C consecutive texts are one question."""

    def __init__(self, pooler: ContextPooler, hidden_size: int, dropout: float):
        super().__init__(pooler, hidden_size, 1, dropout)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Map (B, L, D) to (B,)."""
        return {"logits": super().__call__(hidden, pooled, decode)["logits"].squeeze(-1)}


class DebertaV2Predictions(WordScores):
    """LayerNorm(activation(dense(x))), then scores by the word embeddings, which are always tied."""

    def __init__(self, hidden_size: int, vocab_size: int, activation: Activation, layer_norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.LayerNorm = LayerNorm(hidden_size, eps=layer_norm_eps)
        self._activation = activation
        self.add_decoder(hidden_size, vocab_size, bias=True, decoder_weight=False, decoder_bias=False)

    def __call__(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        return self.scores(self.LayerNorm(self._activation(self.dense(hidden))), decode)


class DebertaV2MaskedLMHead(LanguageModelHead):
    """`DebertaV2ForMaskedLM` with `legacy` false, as Microsoft's checkpoints have it: `logits` (B, L, V)."""

    def __init__(self, hidden_size: int, vocab_size: int, activation: Activation, layer_norm_eps: float):
        super().__init__()
        self.lm_predictions = nn.Module()
        self.lm_predictions.lm_head = DebertaV2Predictions(hidden_size, vocab_size, activation, layer_norm_eps)

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Map (…, D) to (…, V)."""
        logits: mx.array = self.lm_predictions.lm_head(hidden, decode)
        return logits
