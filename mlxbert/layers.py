"""One encoder layer, the stack of them, and the pooler."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import Dropout
from mlxbert.activations import ACTIVATIONS
from mlxbert.attention import BertAttention
from mlxbert.config import BertConfig


class BertIntermediate(nn.Module):
    """activation(dense(x)), D -> intermediate size."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self._activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        """(B, L, D) -> (B, L, F)."""
        return self._activation(self.dense(x))


class BertLayerOutput(nn.Module):
    """LayerNorm(dense(intermediate) + input); transformers calls this `BertOutput`."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, intermediate: mx.array, x: mx.array) -> mx.array:
        """(B, L, F), (B, L, D) -> (B, L, D)."""
        return self.LayerNorm(self.dropout(self.dense(intermediate)) + x)


class BertLayer(nn.Module):
    """Attention, then the feed-forward block, each with a residual and a LayerNorm after it."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertLayerOutput(config)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """(B, L, D) -> (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        x, weights = self.attention(x, mask, output_attentions)
        return self.output(self.intermediate(x), x), weights


class BertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = [BertLayer(config) for _ in range(config.num_hidden_layers)]


class BertPooler(nn.Module):
    """tanh(dense(first token)); trained with next-sentence prediction."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, hidden: mx.array) -> mx.array:
        """(B, L, D) -> (B, D)."""
        return mx.tanh(self.dense(hidden[:, 0]))
