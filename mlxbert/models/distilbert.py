"""DistilBERT: Sanh et al. 2019, https://arxiv.org/abs/1910.01108; transformers `models/distilbert/`.

BERT's layer under other names, without token types and without a pooler. Two things differ in training: there is no
dropout after the attention's output layer, and the heads have dropouts of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import TokenClassificationHead
from heads.pretrained.bert import Dropout, LayerNorm
from heads.pretrained.distilbert import (
    DistilBertClassificationHead,
    DistilBertMaskedLMHead,
    DistilBertMultipleChoiceHead,
    DistilBertSpanHead,
)
from mlxbert.activations import ACTIVATIONS
from mlxbert.model_arrays import embedded
from mlxbert.models.architecture import Architecture, HeadClass, HeadKind
from mlxbert.models.attention import attend, merge_heads, split_heads
from mlxbert.models.base import Context, Encoder, Inputs
from mlxbert.models.bert import TOLERANCES
from mlxbert.models.config_fields import (
    Checks,
    EncoderConfig,
    deviation,
    flag,
    layer_count,
    probability,
    size,
    token_id,
)
from mlxbert.models.config_fields import activation as activation_name

LAYER_NORM_EPS = 1e-12
"""The epsilon of every norm; the configuration has no field for it."""


@dataclass(frozen=True)
class DistilBertConfig(EncoderConfig):
    """The fields of a DistilBERT configuration that change numbers, with transformers' own defaults.

    `sinusoidal_pos_embds` changes only how transformers fills the table of positions before training: the table is
    stored, and trained, either way. Source: transformers `models/distilbert/configuration_distilbert.py`.
    """

    model_type: ClassVar[str] = "distilbert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    hidden_dim: int = 3072
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    pad_token_id: int | None = 0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    CHECKS: ClassVar[Checks] = {
        "vocab_size": size,
        "hidden_size": size,
        "num_hidden_layers": layer_count,
        "num_attention_heads": size,
        "hidden_dim": size,
        "activation": activation_name,
        "dropout": probability,
        "attention_dropout": probability,
        "qa_dropout": probability,
        "seq_classif_dropout": probability,
        "max_position_embeddings": size,
        "sinusoidal_pos_embds": flag,
        "pad_token_id": token_id,
        "initializer_range": deviation,
        "tie_word_embeddings": flag,
    }
    ALIASES: ClassVar[Mapping[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    }

    @property
    def hidden_act(self) -> str:
        """The activation of the feed-forward block, under the name of the other architectures."""
        return self.activation

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest input, special ones included: one position each."""
        return self.max_position_embeddings

    @property
    def table_rows(self) -> Mapping[str, int]:
        """The number of different ids that each argument of the encoder may hold."""
        return {"input_ids": self.vocab_size, "position_ids": self.max_position_embeddings}


class Embeddings(nn.Module):
    """LayerNorm(word + position)."""

    def __init__(self, config: DistilBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(config.dropout)

    def __call__(self, inputs: Inputs) -> mx.array:
        """Ids (B, L) to embeddings (B, L, D).

        Raises:
            InputError: an id that its table does not have; NaN instead while the call is traced.
        """
        words = inputs.embeds
        if words is None:
            assert inputs.ids is not None  # one of the two is there
            words = embedded("input_ids", self.word_embeddings, inputs.ids)
        if inputs.positions is None:
            positions = self.position_embeddings(mx.arange(inputs.shape[1])[None])
        else:
            positions = embedded("position_ids", self.position_embeddings, inputs.positions)
        return self.dropout(self.LayerNorm(words + positions))


class SelfAttention(nn.Module):
    """out_lin(softmax(Q Kᵀ / √Dh) V) over H heads; transformers `DistilBertSelfAttention`."""

    def __init__(self, config: DistilBertConfig):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scale = (D // self.num_heads) ** -0.5
        self.q_lin = nn.Linear(D, D)
        self.k_lin = nn.Linear(D, D)
        self.v_lin = nn.Linear(D, D)
        self.out_lin = nn.Linear(D, D)
        self.dropout = Dropout(config.attention_dropout)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        q, k, v = (split_heads(linear(x), self.num_heads) for linear in (self.q_lin, self.k_lin, self.v_lin))
        context, weights = attend(q, k, v, self.scale, mask, self.dropout, output_attentions)
        return self.out_lin(merge_heads(context)), weights


class FFN(nn.Module):
    """lin2(activation(lin1(x))), D -> hidden_dim -> D."""

    def __init__(self, config: DistilBertConfig):
        super().__init__()
        self.lin1 = nn.Linear(config.hidden_size, config.hidden_dim)
        self.lin2 = nn.Linear(config.hidden_dim, config.hidden_size)
        self.dropout = Dropout(config.dropout)
        self._activation = ACTIVATIONS[config.activation]

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, L, D) to (B, L, D)."""
        return self.dropout(self.lin2(self._activation(self.lin1(x))))


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward block, each with a residual and a LayerNorm after it."""

    def __init__(self, config: DistilBertConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.sa_layer_norm = LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.ffn = FFN(config)
        self.output_layer_norm = LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        attended, weights = self.attention(x, mask, output_attentions)
        x = self.sa_layer_norm(attended + x)
        return self.output_layer_norm(self.ffn(x) + x), weights


class Transformer(nn.Module):
    """The stack of layers."""

    def __init__(self, config: DistilBertConfig):
        super().__init__()
        self.layer = [TransformerBlock(config) for _ in range(config.num_hidden_layers)]


class DistilBertCore(Encoder):
    """Embeddings and layers."""

    layers_path = "transformer.layer"

    def __init__(self, config: DistilBertConfig, add_pooling_layer: bool = False):
        """Make the encoder; `add_pooling_layer` changes nothing, because DistilBERT has no pooler."""
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.transformer = Transformer(config)

    @property
    def num_layers(self) -> int:
        """The number of layers that run in sequence."""
        return len(self.transformer.layer)

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings, and the mask if there is one."""
        keep = inputs.keep
        return self.embeddings(inputs), {} if keep is None else {"mask": keep}

    def run_layer(
        self, i: int, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Run layer `i`."""
        output: tuple[mx.array, mx.array | None] = self.transformer.layer[i](x, context.get("mask"), output_attentions)
        return output


# The checkpoint's own heads


def _masked_lm_head(config: DistilBertConfig, labels: int, tensors: Iterable[str]) -> DistilBertMaskedLMHead:
    return DistilBertMaskedLMHead(
        config.hidden_size,
        config.vocab_size,
        ACTIVATIONS[config.activation],
        LAYER_NORM_EPS,
        # If the configuration unties it, it must be there: with the embeddings the numbers would silently differ.
        decoder_weight="vocab_projector.weight" in set(tensors) or not config.tie_word_embeddings,
    )


def _sequence_head(config: DistilBertConfig, labels: int, tensors: Iterable[str]) -> DistilBertClassificationHead:
    return DistilBertClassificationHead(config.hidden_size, labels, config.seq_classif_dropout)


def _token_head(config: DistilBertConfig, labels: int, tensors: Iterable[str]) -> TokenClassificationHead:
    return TokenClassificationHead(config.hidden_size, labels, config.dropout)


def _choice_head(config: DistilBertConfig, labels: int, tensors: Iterable[str]) -> DistilBertMultipleChoiceHead:
    return DistilBertMultipleChoiceHead(config.hidden_size, config.seq_classif_dropout)


def _span_head(config: DistilBertConfig, labels: int, tensors: Iterable[str]) -> DistilBertSpanHead:
    return DistilBertSpanHead(config.hidden_size, config.qa_dropout)


# The facts about DistilBERT

_LM = ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.")
_PRE, _CLASSIFIER, _SPAN = "pre_classifier.", "classifier.", "qa_outputs."

DISTILBERT = Architecture(
    model_type="distilbert",
    table="distilbert",
    config=DistilBertConfig,
    encoder=DistilBertCore,
    encoder_class="DistilBertModel",
    prefix="distilbert.",
    parts=("embeddings.", "transformer."),
    heads={
        "DistilBertForMaskedLM": HeadClass(HeadKind.MASKED_LM, _LM, _masked_lm_head),
        "DistilBertForSequenceClassification": HeadClass(
            HeadKind.SEQUENCE, (_PRE, _CLASSIFIER), _sequence_head, labels="classifier"
        ),
        "DistilBertForTokenClassification": HeadClass(
            HeadKind.TOKEN, (_CLASSIFIER,), _token_head, labels="classifier"
        ),
        "DistilBertForMultipleChoice": HeadClass(HeadKind.CHOICE, (_PRE, _CLASSIFIER), _choice_head),
        "DistilBertForQuestionAnswering": HeadClass(HeadKind.SPAN, (_SPAN,), _span_head),
    },
    tables={"word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings"},
    tokenizer_class="DistilBertTokenizer",
    has_token_types=False,
    tolerances=TOLERANCES,
    projections={"query": "q_lin", "key": "k_lin", "value": "v_lin"},
    tiny={
        "vocab_size": 97,
        "dim": 48,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 80,
        "max_position_embeddings": 64,
    },
)

ARCHITECTURES = (DISTILBERT,)
