"""BERT: Devlin et al. 2018, https://arxiv.org/abs/1810.04805; transformers `models/bert/modeling_bert.py`.

Top to bottom: the configuration, the modules from the embeddings to the pooler, the encoder, the checkpoint's own
heads, and the facts about the architecture. Names of modules are those of the checkpoint's tensors (without
`bert.`), so that loading needs no mapping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import (
    Dropout,
    LayerNorm,
    MaskedLMHead,
    MultipleChoiceHead,
    NextSentenceHead,
    Predictions,
    PretrainingHead,
    SequenceClassificationHead,
    SpanHead,
    TokenClassificationHead,
)
from mlxbert.activations import ACTIVATIONS
from mlxbert.model_arrays import embedded
from mlxbert.models.architecture import Architecture, HeadClass, HeadKind, MappingLimits, PrecisionLimits, Tolerances
from mlxbert.models.attention import attend, merge_heads, split_heads
from mlxbert.models.base import Context, Encoder, Inputs
from mlxbert.models.config_fields import (
    Checks,
    EncoderConfig,
    Refusals,
    activation,
    deviation,
    epsilon,
    flag,
    layer_count,
    optional_probability,
    probability,
    size,
    token_id,
)


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The fields of a BERT configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/bert/configuration_bert.py`. Immutable; made with `from_hf`.
    """

    model_type: ClassVar[str] = "bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    CHECKS: ClassVar[Checks] = {
        "vocab_size": size,
        "hidden_size": size,
        "num_hidden_layers": layer_count,
        "num_attention_heads": size,
        "intermediate_size": size,
        "hidden_act": activation,
        "hidden_dropout_prob": probability,
        "attention_probs_dropout_prob": probability,
        "max_position_embeddings": size,
        "type_vocab_size": size,
        "layer_norm_eps": epsilon,
        "pad_token_id": token_id,
        "classifier_dropout": optional_probability,
        "initializer_range": deviation,
        "tie_word_embeddings": flag,
    }
    REFUSED: ClassVar[Refusals] = {
        # transformers >= 5 dropped relative positions, and silently reads such a checkpoint as an absolute one.
        "position_embedding_type": (lambda value: value in ("absolute", None), "relative positions"),
    }

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def head_dropout(self) -> float:
        """Dropout before the last layer of a classifier."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest input, special ones included: one position each."""
        return self.max_position_embeddings

    @property
    def table_rows(self) -> Mapping[str, int]:
        """The number of different ids that each argument of the encoder may hold."""
        return {
            "input_ids": self.vocab_size,
            "token_type_ids": self.type_vocab_size,
            "position_ids": self.max_position_embeddings,
        }


class BertEmbeddings(nn.Module):
    """LayerNorm(word + token type + position); transformers `BertEmbeddings`."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.LayerNorm = LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, inputs: Inputs, counted: mx.array | None = None) -> mx.array:
        """Ids (B, L) to embeddings (B, L, E).

        Args:
            inputs: types default to 0.
            counted: positions (B, L) or (1, L) if the caller gives none; None: 0 … L − 1.

        Raises:
            InputError: an id that its table does not have; NaN instead while the call is traced.
        """
        words = inputs.embeds
        if words is None:
            assert inputs.ids is not None  # one of the two is there
            words = embedded("input_ids", self.word_embeddings, inputs.ids)
        if inputs.types is None:
            types = self.token_type_embeddings(mx.zeros(inputs.shape, mx.int32))
        else:
            types = embedded("token_type_ids", self.token_type_embeddings, inputs.types)
        if inputs.positions is None:
            positions = self.position_embeddings(mx.arange(inputs.shape[1])[None] if counted is None else counted)
        else:
            positions = embedded("position_ids", self.position_embeddings, inputs.positions)
        # The order of the sum is upstream's: float addition is not associative, and parity is measured in ulps.
        return self.dropout(self.LayerNorm(words + types + positions))


class BertSelfAttention(nn.Module):
    """softmax(Q Kᵀ / √Dh) V over H heads; transformers `BertSelfAttention`, https://arxiv.org/abs/1706.03762."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = config.head_size**-0.5
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to the context (B, L, D) and, on request, the attention weights (B, H, L, L).

        `mask` is boolean and broadcasts to (B, H, L, L), True = attend.
        """
        q, k, v = (split_heads(projection(x), self.num_heads) for projection in (self.query, self.key, self.value))
        context, weights = attend(q, k, v, self.scale, mask, self.dropout, output_attentions)
        return merge_heads(context), weights


class BertSelfOutput(nn.Module):
    """LayerNorm(dense(context) + input)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, context: mx.array, x: mx.array) -> mx.array:
        """Map (B, L, D) and (B, L, D) to (B, L, D)."""
        return self.LayerNorm(self.dropout(self.dense(context)) + x)


class BertAttention(nn.Module):
    """Self-attention with its output layer; the attribute names are the checkpoint's."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertSelfOutput(config)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        context, weights = self.self(x, mask, output_attentions)
        return self.output(context, x), weights


class BertIntermediate(nn.Module):
    """activation(dense(x)), D -> intermediate size."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self._activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, L, D) to (B, L, F)."""
        return self._activation(self.dense(x))


class BertLayerOutput(nn.Module):
    """LayerNorm(dense(intermediate) + input); transformers calls this `BertOutput`."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, intermediate: mx.array, x: mx.array) -> mx.array:
        """Map (B, L, F) and (B, L, D) to (B, L, D)."""
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
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
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
        """Map (B, L, D) to (B, D)."""
        return mx.tanh(self.dense(hidden[:, 0]))


class BertCore(Encoder):
    """Embeddings, layers and, if the checkpoint has one, pooler."""

    layers_path = "encoder.layer"

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        if add_pooling_layer:
            self.pooler = BertPooler(config)

    @property
    def num_layers(self) -> int:
        """The number of layers that run in sequence."""
        return len(self.encoder.layer)

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings, and the mask if there is one."""
        keep = inputs.keep
        return self.embeddings(inputs), {} if keep is None else {"mask": keep}

    def run_layer(
        self, i: int, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Run layer `i`."""
        output: tuple[mx.array, mx.array | None] = self.encoder.layer[i](x, context.get("mask"), output_attentions)
        return output


# The checkpoint's own heads


def bert_predictions(config: Any, tensors: Iterable[str]) -> Predictions:
    """Return empty scores of words, with those tensors of a decoder that the checkpoint has."""
    names = set(tensors)
    own_bias = "cls.predictions.decoder.bias" in names
    return Predictions(
        config.hidden_size,
        config.vocab_size,
        ACTIVATIONS[config.hidden_act],
        config.layer_norm_eps,
        bias="cls.predictions.bias" in names or not own_bias,
        # If the configuration unties it, it must be there: with the embeddings the numbers would silently differ.
        decoder_weight="cls.predictions.decoder.weight" in names or not config.tie_word_embeddings,
        decoder_bias=own_bias,
        embedding_size=config.embedding_size,
    )


def _masked_lm_head(config: BertConfig, labels: int, tensors: Iterable[str]) -> MaskedLMHead:
    return MaskedLMHead(bert_predictions(config, tensors))


def _pretraining_head(config: BertConfig, labels: int, tensors: Iterable[str]) -> PretrainingHead:
    return PretrainingHead(bert_predictions(config, tensors), config.hidden_size)


def _next_sentence_head(config: BertConfig, labels: int, tensors: Iterable[str]) -> NextSentenceHead:
    return NextSentenceHead(config.hidden_size)


def _sequence_head(config: BertConfig, labels: int, tensors: Iterable[str]) -> SequenceClassificationHead:
    return SequenceClassificationHead(config.hidden_size, labels, config.head_dropout)


def token_head(config: BertConfig, labels: int, tensors: Iterable[str]) -> TokenClassificationHead:
    """Return an empty head for classes of tokens."""
    return TokenClassificationHead(config.hidden_size, labels, config.head_dropout)


def choice_head(config: BertConfig, labels: int, tensors: Iterable[str]) -> MultipleChoiceHead:
    """Return an empty head for one text of several."""
    return MultipleChoiceHead(config.hidden_size, config.head_dropout)


def span_head(config: BertConfig, labels: int, tensors: Iterable[str]) -> SpanHead:
    """Return an empty head for an answer in a text."""
    return SpanHead(config.hidden_size)


# The facts about BERT

_LM, _NEXT, _CLASSIFIER, _SPAN = "cls.predictions.", "cls.seq_relationship.", "classifier.", "qa_outputs."
_TIED_BIAS = ("cls.predictions.decoder.bias", "cls.predictions.bias")

TOLERANCES = Tolerances(
    # Measured with benchmarks/parity_errors.py; the limits do not move when a test fails.
    mapping=MappingLimits(cumulative=2e-5, local=5e-6),
    precision={
        "float32": PrecisionLimits(max_rel=1e-6, cosine=0.999999),
        # Three to five times what rounded weights and arithmetic in that dtype together cost all-MiniLM-L6-v2 and
        # random models of bert-base's size: float16 8.6e-3 and 1 − 8.7e-6, bfloat16 6.8e-2 and 1 − 6.3e-4.
        "float16": PrecisionLimits(max_rel=3e-2, cosine=0.99996),
        "bfloat16": PrecisionLimits(max_rel=2.5e-1, cosine=0.998),
    },
)

SWIFT_NAMES = {
    "encoder.layer.{i}.attention.self.query": "encoder.layers.{i}.attention.query_proj",
    "encoder.layer.{i}.attention.self.key": "encoder.layers.{i}.attention.key_proj",
    "encoder.layer.{i}.attention.self.value": "encoder.layers.{i}.attention.value_proj",
    "encoder.layer.{i}.attention.output.dense": "encoder.layers.{i}.attention.out_proj",
    "encoder.layer.{i}.intermediate.dense": "encoder.layers.{i}.linear1",
    "encoder.layer.{i}.output.dense": "encoder.layers.{i}.linear2",
    "pooler.dense": "pooler",
}
"""The names of mlx-swift-lm's `Bert.swift`."""

TABLES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings",
}

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}

VARIANTS = {
    "nomic_bert": "NomicBERT, with rotary positions and a gated feed-forward layer",
    "megatron-bert": "Megatron-BERT, with the norms before attention and feed-forward layer",
    "mobilebert": "MobileBERT, with bottlenecks",
    "squeezebert": "SqueezeBERT, with grouped convolutions",
    "big_bird": "BigBird, with sparse attention",
    "rembert": "RemBERT, with embeddings of another size",
    "roc_bert": "RoCBert, with embeddings of shape and pronunciation",
    "layoutlm": "LayoutLM, with the places of words on a page",
    "bert-generation": "BERT for generation, without token types",
    "splinter": "Splinter, with heads of its own",
    "fnet": "FNet, with Fourier transforms instead of attention",
    "funnel": "Funnel Transformer, with pooled layers",
    "xlnet": "XLNet, with two streams of relative attention",
    "dpr": "DPR, BERT with a prefix of its own",
    "convbert": "ConvBERT, with dynamic convolutions",
    "ernie": "ERNIE, with an embedding of the task",
    "roformer": "RoFormer, with rotary positions",
}

BERT = Architecture(
    model_type="bert",
    table="bert",
    config=BertConfig,
    encoder=BertCore,
    encoder_class="BertModel",
    prefix="bert.",
    parts=("embeddings.", "encoder.", "pooler."),
    heads={
        "BertForPreTraining": HeadClass(
            HeadKind.PRETRAINING, (_LM, _NEXT), _pretraining_head, has_pooler=True, tied_bias=_TIED_BIAS
        ),
        "BertForMaskedLM": HeadClass(HeadKind.MASKED_LM, (_LM,), _masked_lm_head, tied_bias=_TIED_BIAS),
        "BertForNextSentencePrediction": HeadClass(
            HeadKind.NEXT_SENTENCE, (_NEXT,), _next_sentence_head, has_pooler=True
        ),
        "BertForSequenceClassification": HeadClass(
            HeadKind.SEQUENCE, (_CLASSIFIER,), _sequence_head, has_pooler=True, labels="classifier"
        ),
        "BertForTokenClassification": HeadClass(HeadKind.TOKEN, (_CLASSIFIER,), token_head, labels="classifier"),
        "BertForMultipleChoice": HeadClass(HeadKind.CHOICE, (_CLASSIFIER,), choice_head, has_pooler=True),
        "BertForQuestionAnswering": HeadClass(HeadKind.SPAN, (_SPAN,), span_head),
    },
    tables=TABLES,
    tokenizer_class="BertTokenizer",
    has_token_types=True,
    tolerances=TOLERANCES,
    swift_names=SWIFT_NAMES,
    # One token type, or padding by id 1, may mean an architecture with the same names and other positions.
    assumed=lambda config: config.get("type_vocab_size") != 1 and config.get("pad_token_id") != 1,
    known_to=frozenset({"mlx-embeddings", "mlx-vlm", "MLXEmbedders"}),
    variants=VARIANTS,
    tiny=TINY,
)

ARCHITECTURES = (BERT,)
