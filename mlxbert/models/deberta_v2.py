"""DeBERTa-v2 and -v3: He et al. 2020 and 2021, https://arxiv.org/abs/2006.03654, https://arxiv.org/abs/2111.09543;
transformers `models/deberta_v2/modeling_deberta_v2.py`.

Its layers are BERT's, with another attention: to the score of a query and a key come the score of the query with the
distance between the two (c2p) and that of the key with it (p2c). Distances are rows of one table, which every layer
projects by itself. v2-xlarge has a convolution beside its first layer. The encoder has no pooler: the one of
transformers' classes is a part of their heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.pretrained import Dropout, MaskedLMHead
from heads.pretrained.deberta_v2 import (
    ContextPooler,
    DebertaV2ChoiceHead,
    DebertaV2MaskedLMHead,
    DebertaV2Predictions,
    DebertaV2SequenceHead,
)
from mlxbert.activations import ACTIVATIONS, softmax
from mlxbert.errors import shown
from mlxbert.model_arrays import embedded
from mlxbert.models.architecture import Architecture, HeadClass, HeadKind
from mlxbert.models.base import Context, Encoder, Inputs
from mlxbert.models.bert import (
    TABLES,
    TINY,
    TOLERANCES,
    BertConfig,
    BertIntermediate,
    BertLayerOutput,
    BertSelfOutput,
    bert_predictions,
    merge_heads,
    span_head,
    split_heads,
    token_head,
)
from mlxbert.models.config_fields import (
    Checks,
    ConfigError,
    EncoderConfig,
    Refusals,
    activation,
    flag,
    optional_probability,
    probability,
    size,
    whole_number,
)

C2P, P2C = "c2p", "p2c"


def _terms(name: str, value: Any) -> tuple[str, ...]:
    """Return the terms of the attention's scores; transformers reads a list, "c2p|p2c" and null."""
    terms = [] if value is None else value.lower().split("|") if isinstance(value, str) else value
    terms = [term.strip() if isinstance(term, str) else term for term in terms] if isinstance(terms, list) else [value]
    if wrong := [term for term in terms if term not in (C2P, P2C, "", "none")]:
        raise ConfigError(f"config.json: {name} has {shown(wrong[0])}; computed are 'c2p' and 'p2c'")
    return tuple(term for term in (C2P, P2C) if term in terms)


def _table_norm(name: str, value: Any) -> str:
    """Return "layer_norm" or "none"."""
    norms = {part.strip() for part in value.lower().split("|")} if isinstance(value, str) else {value}
    if wrong := [part for part in norms if part not in ("layer_norm", "none", "")]:
        raise ConfigError(f"config.json: {name} has {shown(wrong[0])}; computed are 'layer_norm' and 'none'")
    return "layer_norm" if "layer_norm" in norms else "none"


def _kernel(name: str, value: Any) -> int:
    """Return the width of the convolution, 0 for none."""
    width = whole_number(name, value)
    if width > 0 and width % 2 == 0:
        raise ConfigError(
            f"config.json: {name} {width} is even: its output is one position short, which transformers cannot run"
        )
    return max(width, 0)


@dataclass(frozen=True)
class DebertaV2Config(EncoderConfig):
    """The fields of a DeBERTa-v2 configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/deberta_v2/configuration_deberta_v2.py`, and the fields that the model reads besides.
    """

    model_type: ClassVar[str] = "deberta-v2"

    vocab_size: int = 128100
    hidden_size: int = 1536
    embedding_size: int = 0  # `from_hf` takes hidden_size instead of 0
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    pad_token_id: int | None = 0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    position_biased_input: bool = True
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"
    pooler_hidden_act: str = "gelu"
    pooler_dropout: float = 0.0
    cls_dropout: float | None = None
    legacy: bool = True

    CHECKS: ClassVar[Checks] = {
        **{name: check for name, check in BertConfig.CHECKS.items() if name != "classifier_dropout"},
        "embedding_size": size,
        "type_vocab_size": whole_number,
        "relative_attention": flag,
        "max_relative_positions": whole_number,
        "position_buckets": whole_number,
        "pos_att_type": _terms,
        "share_att_key": flag,
        "norm_rel_ebd": _table_norm,
        "position_biased_input": flag,
        "conv_kernel_size": _kernel,
        "conv_groups": size,
        "conv_act": activation,
        "pooler_hidden_act": activation,
        "pooler_dropout": probability,
        "cls_dropout": optional_probability,
        "legacy": flag,
    }
    REFUSED: ClassVar[Refusals] = {
        name: rule for name, rule in BertConfig.REFUSED.items() if name != "position_embedding_type"
    }

    def __post_init__(self) -> None:
        if not self.embedding_size:
            object.__setattr__(self, "embedding_size", self.hidden_size)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DebertaV2Config:
        """Read a parsed `config.json`, as `EncoderConfig.from_hf`.

        Raises:
            ConfigError: also for fields that contradict each other, which transformers cannot run.
        """
        parsed = super().from_hf(config)
        wanted = {"attention_head_size": parsed.head_size, "pooler_hidden_size": parsed.hidden_size}
        for name, value in wanted.items():
            if name in config and config[name] != value:
                raise ConfigError(
                    f"config.json: {name} {shown(config[name])} does not fit hidden_size {parsed.hidden_size}, and "
                    f"transformers cannot run it; it must be {value}"
                )
        if parsed.conv_kernel_size and parsed.hidden_size % parsed.conv_groups:
            raise ConfigError(
                f"config.json: hidden_size {parsed.hidden_size} is not a multiple of conv_groups {parsed.conv_groups}"
            )
        if not parsed.legacy and parsed.embedding_size != parsed.hidden_size:
            raise ConfigError(
                f"config.json: legacy=false with embedding_size {parsed.embedding_size} and hidden_size "
                f"{parsed.hidden_size} asks for a language-model head that transformers cannot run; fix: for any other "
                'head, remove "legacy"'
            )
        middle = parsed.position_buckets // 2
        farthest = parsed.max_position_embeddings - 1
        if parsed.relative_attention and parsed.position_buckets > 0:
            if middle == 0 or (parsed.span_of_distances - 1 <= middle < farthest):
                raise ConfigError(
                    f"config.json: position_buckets {parsed.position_buckets} and max_relative_positions "
                    f"{parsed.span_of_distances} give no buckets for distances above {middle}"
                )
        return parsed

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def head_dropout(self) -> float:
        """Dropout before the last layer of a classifier of tokens."""
        return self.hidden_dropout_prob

    @property
    def pooled_dropout(self) -> float:
        """Dropout before the last layer of a classifier of texts."""
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest input, special ones included."""
        return self.max_position_embeddings

    @property
    def table_rows(self) -> Mapping[str, int]:
        """The number of different ids that each argument of the encoder may hold."""
        rows = {"input_ids": self.vocab_size}
        if self.type_vocab_size:
            rows["token_type_ids"] = self.type_vocab_size
        return rows | ({"position_ids": self.max_position_embeddings} if self.position_biased_input else {})

    @property
    def span_of_distances(self) -> int:
        """The largest distance that is told from larger ones, in tokens."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def half_table(self) -> int:
        """Half the rows of the table of distances: row `half_table` is distance 0."""
        return self.position_buckets if self.position_buckets > 0 else self.span_of_distances

    @property
    def distance_rows(self) -> int:
        """The rows of the table of distances."""
        return 2 * self.half_table

    @property
    def conv_inputs(self) -> int:
        """The inputs of one output of the convolution."""
        return self.hidden_size // self.conv_groups

    @property
    def has_position_terms(self) -> bool:
        """Whether attention reads the table of distances."""
        return self.relative_attention and bool(self.pos_att_type)

    def projects_distances(self, term: str) -> bool:
        """Return whether each layer has a matrix of its own for this term."""
        return self.relative_attention and term in self.pos_att_type and not self.share_att_key

    def rows_of_distances(self, length: int) -> np.ndarray[Any, Any]:
        """Return the rows of the table of distances for query − key = 1 − L … L − 1, (2L − 1,).

        transformers `make_log_bucket_position`: up to half the buckets a distance has its own, from there on buckets
        grow with the logarithm. Rounded to float32 where torch rounds, because a bucket ends at a whole number.
        """
        distances = np.arange(1 - length, length)
        if self.position_buckets > 0:
            middle = self.position_buckets // 2
            far = np.abs(distances) > middle
            size = np.abs(distances[far]).astype(np.float32) / np.float32(middle)
            last = np.float32((self.span_of_distances - 1) / middle)
            share = _log(size) / _log(last)
            bucket = np.ceil(share * np.float32(middle - 1)).astype(np.int64) + middle
            distances[far] = np.sign(distances[far]) * bucket
        return np.clip(distances + self.half_table, 0, self.distance_rows - 1)


def _log(x: Any) -> Any:
    return np.log(np.float64(x)).astype(np.float32)


class DebertaV2Embeddings(nn.Module):
    """LayerNorm(projection(word + position + token type)), 0 at padding; transformers `DebertaV2Embeddings`."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        width = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        if config.position_biased_input:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        if width != config.hidden_size:
            self.embed_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, inputs: Inputs, real: mx.array | None) -> mx.array:
        """Map ids (B, L) to embeddings (B, L, D).

        Args:
            inputs: types default to 0, positions to 0 … L − 1.
            real: (B, L) boolean, the tokens that are no padding; None: all.

        Raises:
            InputError: an id that its table does not have; NaN instead while the call is traced.
        """
        x = inputs.embeds
        if x is None:
            assert inputs.ids is not None  # one of the two is there
            x = embedded("input_ids", self.word_embeddings, inputs.ids)
        if "position_embeddings" in self:
            if inputs.positions is None:
                x = x + self.position_embeddings(mx.arange(inputs.shape[1])[None])
            else:
                x = x + embedded("position_ids", self.position_embeddings, inputs.positions)
        if "token_type_embeddings" in self:
            if inputs.types is None:
                x = x + self.token_type_embeddings(mx.zeros(inputs.shape, mx.int32))
            else:
                x = x + embedded("token_type_ids", self.token_type_embeddings, inputs.types)
        if "embed_proj" in self:
            x = self.embed_proj(x)
        x = self.LayerNorm(x)
        # The convolution reads padding: 0 here.
        return self.dropout(x if real is None else mx.where(real[..., None], x, 0))


def _skewed(scores: mx.array) -> mx.array:
    """Return out[…, i, j] = scores[…, i, L − 1 − i + j], (…, L, 2L − 1) -> (…, L, L), without a gather.

    Row i shifted by one less than the row above: in rows of 2L − 2 instead of 2L − 1 numbers, it is a rectangle.
    """
    *batch, L, _ = scores.shape
    if L == 1:
        return scores
    flat = scores.reshape(*batch, L * (2 * L - 1))[..., L - 1 : L - 1 + L * (2 * L - 2)]
    return flat.reshape(*batch, L, 2 * L - 2)[..., :L]


class DisentangledSelfAttention(nn.Module):
    """softmax((Q Kᵀ + c2p + p2c) / √(n Dh)) V over H heads, n the number of terms; the paper's equations 2 to 4.

    c2p[q, k] = Q_q · pos_key(q − k), p2c[q, k] = K_k · pos_query(q − k).
    """

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scale = 1 / sqrt(config.head_size * (1 + len(config.pos_att_type)))
        self.query_proj, self.key_proj, self.value_proj = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self._terms = config.pos_att_type if config.relative_attention else ()
        self._share = config.share_att_key
        if config.projects_distances(C2P):
            self.pos_key_proj = nn.Linear(D, D)
        if config.projects_distances(P2C):
            self.pos_query_proj = nn.Linear(D, D)
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.pos_dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        q, k, v = (
            split_heads(linear(x), self.num_heads) for linear in (self.query_proj, self.key_proj, self.value_proj)
        )
        q = q * self.scale
        scores = q @ k.swapaxes(-1, -2)  # (B, H, L, L)
        if self._terms:
            scores = scores + self.position_scores(q, k, context)
        if (mask := context.get("mask")) is not None:
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        weights = softmax(scores)
        return merge_heads(self.dropout(weights) @ v), weights if output_attentions else None

    def position_scores(self, q: mx.array, k: mx.array, context: Context) -> mx.array:
        """Return c2p + p2c, (B, H, L, L); `q` is scaled."""
        distances = self.pos_dropout(context["distances"])  # (1, n, D)
        total = None
        if C2P in self._terms:
            keys = self._of_distances(self.key_proj if self._share else self.pos_key_proj, distances, context)
            total = _skewed(q @ keys[:, :, ::-1].swapaxes(-1, -2))
        if P2C in self._terms:
            queries = self._of_distances(self.query_proj if self._share else self.pos_query_proj, distances, context)
            p2c = _skewed(k @ (queries * self.scale).swapaxes(-1, -2)).swapaxes(-1, -2)
            total = p2c if total is None else total + p2c
        return total

    def _of_distances(self, projection: nn.Module, distances: mx.array, context: Context) -> mx.array:
        """Return a projection's vector for every distance 1 − L … L − 1, (1, H, 2L − 1, Dh)."""
        rows = projection(distances)
        if "rows" in context:
            rows = rows[:, context["rows"]]
        return split_heads(rows, self.num_heads)


class DebertaV2Attention(nn.Module):
    """Self-attention with its output layer; the attribute names are the checkpoint's."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.self = DisentangledSelfAttention(config)
        self.output = BertSelfOutput(config)


class DebertaV2Layer(nn.Module):
    """Attention, then the feed-forward block, each with a residual and a LayerNorm after it."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.attention = DebertaV2Attention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertLayerOutput(config)

    def __call__(
        self, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        attended, weights = self.attention.self(x, context, output_attentions)
        x = self.attention.output(attended, x)
        return self.output(self.intermediate(x), x), weights


class Convolution(nn.Module):
    """A 1-D convolution; its weight has torch's layout (out, in / groups, k), as the checkpoint has."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.groups = config.conv_groups
        shape = (config.hidden_size, config.conv_inputs, config.conv_kernel_size)
        bound = 1 / sqrt(shape[1] * shape[2])
        self.weight = mx.random.uniform(-bound, bound, shape)
        self.bias = mx.random.uniform(-bound, bound, shape[:1])

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, L, D) to (B, L, D); 0 beyond both ends."""
        padding = self.weight.shape[2] // 2
        return mx.conv1d(x, self.weight.swapaxes(1, 2), padding=padding, groups=self.groups) + self.bias


class DebertaV2Convolution(nn.Module):
    """LayerNorm(residual + activation(conv(x))), 0 at padding; transformers `ConvLayer`."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.conv = Convolution(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self._activation = ACTIVATIONS[config.conv_act]

    def __call__(self, x: mx.array, residual: mx.array, real: mx.array | None) -> mx.array:
        """Map the input and the output of the first layer, (B, L, D) each, to (B, L, D); `real` is (B, L)."""
        x = self.LayerNorm(residual + self._activation(self.dropout(self.conv(x))))
        return x if real is None else mx.where(real[..., None], x, 0)


class DebertaV2Encoder(nn.Module):
    """The stack of layers, the table of distances and the convolution."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.layer = [DebertaV2Layer(config) for _ in range(config.num_hidden_layers)]
        if config.relative_attention:
            self.rel_embeddings = nn.Embedding(config.distance_rows, config.hidden_size)
        if config.norm_rel_ebd == "layer_norm":
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.conv_kernel_size:
            self.conv = DebertaV2Convolution(config)


class DebertaV2Core(Encoder):
    """Embeddings and layers."""

    config: DebertaV2Config

    def __init__(self, config: DebertaV2Config, add_pooling_layer: bool = False):
        """Build a random encoder; `add_pooling_layer` changes nothing, since this encoder has no pooler."""
        super().__init__(config)
        self.embeddings = DebertaV2Embeddings(config)
        self.encoder = DebertaV2Encoder(config)

    @property
    def num_layers(self) -> int:
        """The number of layers that run in sequence."""
        return len(self.encoder.layer)

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings; the context has masks, and the rows of the table of distances that occur."""
        context: Context = {}
        real = None
        if (keep := inputs.keep) is not None:
            real = keep.any(axis=(1, 2))  # (B, L)
            context["mask"] = keep
            if "conv" in self.encoder:
                context["real"] = real
        if self.config.has_position_terms:
            context |= self._distances(inputs.shape[1])
        return self.embeddings(inputs, real), context

    def _distances(self, length: int) -> Context:
        """Return the normed rows of the distances of this length, and which one each distance has.

        "distances": (1, n, D). "rows": (2L − 1,), only where distances share a row.
        """
        rows = self.config.rows_of_distances(length)
        first, last = int(rows[0]), int(rows[-1])
        table = self.encoder.rel_embeddings.weight[first : last + 1]
        if "LayerNorm" in self.encoder:
            table = self.encoder.LayerNorm(table)
        arrays = {"distances": table[None]}
        if not np.array_equal(rows, np.arange(first, last + 1)):
            arrays["rows"] = mx.array(rows - first)
        return arrays

    def run_layer(
        self, i: int, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Run layer `i`; the convolution runs beside the first one."""
        output, weights = self.encoder.layer[i](x, context, output_attentions)
        if i == 0 and "conv" in self.encoder:
            output = self.encoder.conv(x, output, context.get("real"))
        return output, weights

    def layer_modules(self, i: int) -> tuple[nn.Module, ...]:
        """Return layer `i`, and the convolution beside the first one."""
        conv = (self.encoder.conv,) if i == 0 and "conv" in self.encoder else ()
        return (self.encoder.layer[i], *conv)

    def layer_name(self, i: int) -> str:
        """Return the path of layer `i`."""
        return f"encoder.layer.{i}"

    def depth_of(self, name: str) -> int:
        """Return 0 for the embeddings and the table of distances, i + 1 for layer i, 1 for the convolution."""
        if match := _LAYER.match(name):
            return int(match[1]) + 1
        return 1 if name.startswith("encoder.conv.") else 0


_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


# The checkpoint's own heads


def _masked_lm_head(
    config: DebertaV2Config, labels: int, tensors: Iterable[str]
) -> MaskedLMHead | DebertaV2MaskedLMHead:
    if config.legacy:
        return MaskedLMHead(bert_predictions(config, tensors))
    act = ACTIVATIONS[config.hidden_act]
    return DebertaV2MaskedLMHead(
        DebertaV2Predictions(config.hidden_size, config.vocab_size, act, config.layer_norm_eps)
    )


def _fields_of(tensors: Iterable[str]) -> dict[str, Any]:
    """Return `legacy` as the kind of language-model head shows it, which Microsoft's config.json does not name."""
    kinds = {name.partition(".")[0] for name in tensors} & {"cls", "lm_predictions"}
    return {"legacy": "cls" in kinds} if len(kinds) == 1 else {}


def _context_pooler(config: DebertaV2Config) -> ContextPooler:
    return ContextPooler(config.hidden_size, ACTIVATIONS[config.pooler_hidden_act], config.pooler_dropout)


def _sequence_head(config: DebertaV2Config, labels: int, tensors: Iterable[str]) -> DebertaV2SequenceHead:
    return DebertaV2SequenceHead(_context_pooler(config), config.hidden_size, labels, config.pooled_dropout)


def _choice_head(config: DebertaV2Config, labels: int, tensors: Iterable[str]) -> DebertaV2ChoiceHead:
    return DebertaV2ChoiceHead(_context_pooler(config), config.hidden_size, config.pooled_dropout)


# The facts about DeBERTa-v2

_CLASSIFIER, _POOLED, _SPAN = ("classifier.",), ("pooler.", "classifier."), ("qa_outputs.",)

DEBERTA_V2 = Architecture(
    model_type="deberta-v2",
    table="deberta_v2",
    config=DebertaV2Config,
    encoder=DebertaV2Core,
    encoder_class="DebertaV2Model",
    prefix="deberta.",
    parts=("embeddings.", "encoder."),
    heads={
        "DebertaV2ForMaskedLM": HeadClass(
            HeadKind.MASKED_LM,
            (),
            _masked_lm_head,
            tied_bias=("cls.predictions.decoder.bias", "cls.predictions.bias"),
            optional=("cls.predictions.", "lm_predictions."),
        ),
        "DebertaV2ForSequenceClassification": HeadClass(
            HeadKind.SEQUENCE, _POOLED, _sequence_head, labels="classifier"
        ),
        "DebertaV2ForTokenClassification": HeadClass(HeadKind.TOKEN, _CLASSIFIER, token_head, labels="classifier"),
        "DebertaV2ForMultipleChoice": HeadClass(HeadKind.CHOICE, _POOLED, _choice_head),
        "DebertaV2ForQuestionAnswering": HeadClass(HeadKind.SPAN, _SPAN, span_head),
    },
    tables=TABLES,
    tokenizer_class="DebertaV2Tokenizer",
    has_token_types=True,
    tolerances=TOLERANCES,
    fields_of=_fields_of,
    kept={"encoder.rel_embeddings": "TODO"},
    variants={"deberta": "DeBERTa v1, whose layers have one matrix for query, key and value"},
    tiny={
        **TINY,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-7,
    },
)

ARCHITECTURES = (DEBERTA_V2,)
