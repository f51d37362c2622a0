"""DeBERTa-v2 and -v3: He et al. 2020 and 2021, https://arxiv.org/abs/2006.03654, https://arxiv.org/abs/2111.09543;
transformers `models/deberta_v2/modeling_deberta_v2.py`.

Its layers are BERT's, with another attention: to the score of a query and a key come the score of the query with the
distance between the two (c2p) and that of the key with it (p2c). Distances are rows of one table, which every layer
projects by itself. v2-xlarge has a convolution beside its first layer. The encoder has no pooler: the one of
transformers' classes is a part of their heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.dropout import shared_by_rows
from heads.pretrained import Dropout, LayerNorm, MaskedLMHead, PretrainedHead
from heads.pretrained.deberta_v2 import (
    ContextPooler,
    DebertaV2ChoiceHead,
    DebertaV2MaskedLMHead,
    DebertaV2SequenceHead,
)
from mlxbert.activations import ACTIVATIONS
from mlxbert.errors import shown
from mlxbert.model_arrays import embedded
from mlxbert.models import bert
from mlxbert.models.architecture import Architecture, HeadClass, HeadKind
from mlxbert.models.attention import attend, merge_heads, split_heads
from mlxbert.models.base import Context, Encoder, Inputs
from mlxbert.models.config_fields import (
    Checks,
    ConfigError,
    Refusals,
    activation,
    flag,
    optional_probability,
    probability,
    size,
    whole_number,
)
from mlxbert.models.distances import log_buckets, skewed

C2P, P2C = "c2p", "p2c"


def _parts(name: str, value: Any, computed: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `computed` that a field names, as a list or as "a|b"; null, "none" and "" name nothing."""
    parts = value.lower().split("|") if isinstance(value, str) else [] if value is None else value
    parts = [part.strip() if isinstance(part, str) else part for part in parts] if isinstance(parts, list) else [value]
    if wrong := [part for part in parts if part not in (*computed, "none", "")]:
        raise ConfigError(f"config.json: {name} has {shown(wrong[0])}; computed: {', '.join(map(repr, computed))}")
    return tuple(part for part in computed if part in parts)


def _kernel(name: str, value: Any) -> int:
    """Return the width of the convolution, 0 for none."""
    if (width := max(whole_number(name, value), 0)) and width % 2 == 0:
        raise ConfigError(f"config.json: {name} {width} is even, and transformers runs only odd ones")
    return width


@dataclass(frozen=True)
class DebertaV2Config(bert.BertConfig):
    """The fields of a DeBERTa-v2 configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/deberta_v2/configuration_deberta_v2.py`, and the fields that the model reads besides.
    """

    model_type: ClassVar[str] = "deberta-v2"

    vocab_size: int = 128100
    hidden_size: int = 1536
    embedding_size: int = 0  # 0 becomes hidden_size
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: tuple[str, ...] = ()
    position_biased_input: bool = True
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"
    pooler_hidden_act: str = "gelu"
    pooler_dropout: float = 0.0
    cls_dropout: float | None = None
    legacy: bool = True

    CHECKS: ClassVar[Checks] = {
        **{name: check for name, check in bert.BertConfig.CHECKS.items() if name != "classifier_dropout"},
        "embedding_size": size,
        "type_vocab_size": whole_number,
        "relative_attention": flag,
        "max_relative_positions": whole_number,
        "position_buckets": whole_number,
        "pos_att_type": lambda name, value: _parts(name, value, (C2P, P2C)),
        "share_att_key": flag,
        "norm_rel_ebd": lambda name, value: _parts(name, value, ("layer_norm",)),
        "position_biased_input": flag,
        "conv_kernel_size": _kernel,
        "conv_groups": size,
        "conv_act": activation,
        "pooler_hidden_act": activation,
        "pooler_dropout": probability,
        "cls_dropout": optional_probability,
        "legacy": flag,
    }
    REFUSED: ClassVar[Refusals] = {}

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedding_size", self.embedding_size or self.hidden_size)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DebertaV2Config:
        """Read a parsed `config.json`, as `EncoderConfig.from_hf`.

        Raises:
            ConfigError: also for fields that contradict each other, which transformers cannot run.
        """
        parsed = super().from_hf(config)
        width, half, longest = parsed.hidden_size, parsed.position_buckets // 2, parsed.longest_distance
        same = {"attention_head_size": parsed.head_size, "pooler_hidden_size": width}
        problems = [
            f"{name} {shown(config[name])} must be {value}, as hidden_size {width} has it"
            for name, value in same.items()
            if config.get(name, value) != value
        ]
        if not parsed.legacy and parsed.embedding_size != width:
            problems.append(f"legacy=false needs embedding_size {parsed.embedding_size} to be hidden_size {width}")
        if parsed.conv_kernel_size and width % parsed.conv_groups:
            problems.append(f"hidden_size {width} is not a multiple of conv_groups {parsed.conv_groups}")
        if parsed.uses_buckets and (half == 0 or longest - 1 <= half < parsed.max_length - 1):
            problems.append(
                f"position_buckets {parsed.position_buckets} with the longest distance {longest} has no bucket for "
                f"distances above {half}"
            )
        if problems:
            raise ConfigError(f"config.json: {problems[0]}; transformers cannot run this model")
        return parsed

    @property
    def longest_input(self) -> int:
        """The number of tokens that an input may have; without absolute positions nothing limits it."""
        has_bucket = not self.uses_buckets or self.longest_distance - 1 > self.position_buckets // 2
        return self.max_length if self.position_biased_input or not has_bucket else 2**20

    @property
    def head_dropout(self) -> float:
        """Dropout before the last layer of a classifier of tokens."""
        return self.hidden_dropout_prob

    @property
    def pooled_dropout(self) -> float:
        """Dropout before the last layer of a classifier of texts."""
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout

    @property
    def table_rows(self) -> Mapping[str, int]:
        """The number of different ids that each argument of the encoder may hold."""
        has = {"token_type_ids": self.type_vocab_size > 0, "position_ids": self.position_biased_input}
        return {name: rows for name, rows in super().table_rows.items() if has.get(name, True)}

    @property
    def longest_distance(self) -> int:
        """The distance from which on all are alike, in tokens."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def uses_buckets(self) -> bool:
        """Whether several distances share a row of the table of distances."""
        return self.relative_attention and self.position_buckets > 0

    @property
    def distance_rows(self) -> int:
        """The rows of the table of distances; the one in the middle is distance 0."""
        return 2 * (self.position_buckets if self.position_buckets > 0 else self.longest_distance)

    @property
    def conv_inputs(self) -> int:
        """The inputs of one output of the convolution."""
        return self.hidden_size // self.conv_groups

    def projects_distances(self, term: str) -> bool:
        """Return whether each layer has a matrix of its own for this term."""
        return self.relative_attention and term in self.pos_att_type and not self.share_att_key

    def rows_of_distances(self, length: int) -> np.ndarray[Any, Any]:
        """Return the rows of the table of distances for query − key = 1 − L … L − 1, (2L − 1,).

        transformers clips them to the table; with an even number of rows, the longest positive distance has no row.
        """
        distances, middle = np.arange(1 - length, length), self.distance_rows // 2
        if self.uses_buckets:
            distances = log_buckets(distances, self.position_buckets, self.longest_distance)
        return np.clip(distances + middle, 0, self.distance_rows - 1)


class DebertaV2Embeddings(nn.Module):
    """LayerNorm(projection(word + position + token type)), 0 at padding; transformers `DebertaV2Embeddings`."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        width = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        if config.position_biased_input:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        if config.type_vocab_size > 0:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        if width != config.hidden_size:
            self.embed_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
            table, positions = self.position_embeddings, inputs.positions
            default = mx.arange(inputs.shape[1])[None]
            x = x + (table(default) if positions is None else embedded("position_ids", table, positions))
        if "token_type_embeddings" in self:
            table, types = self.token_type_embeddings, inputs.types
            default = mx.zeros(inputs.shape, mx.int32)
            x = x + (table(default) if types is None else embedded("token_type_ids", table, types))
        if "embed_proj" in self:
            x = self.embed_proj(x)
        x = self.LayerNorm(x)
        # The convolution reads padding: 0 here.
        return self.dropout(x if real is None else mx.where(real[..., None], x, 0))


class DisentangledSelfAttention(nn.Module):
    """softmax((Q Kᵀ + c2p + p2c) / √(n Dh)) V over H heads, n the number of terms; the paper's equations 2 to 4.

    c2p[q, k] = Q_q · key(q − k), p2c[q, k] = K_k · query(q − k). In half precision, one factor of each product is
    scaled before it, so that none is larger than the score; transformers divides c2p and p2c after theirs.
    """

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scale = 1 / sqrt(config.head_size * (1 + len(config.pos_att_type)))
        self.query_proj, self.key_proj, self.value_proj = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        if config.projects_distances(C2P):
            self.pos_key_proj = nn.Linear(D, D)
        if config.projects_distances(P2C):
            self.pos_query_proj = nn.Linear(D, D)
        self._terms = config.pos_att_type
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.pos_dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        projections = (self.query_proj, self.key_proj, self.value_proj)
        q, k, v = (split_heads(projection(x), self.num_heads) for projection in projections)
        q = q * self.scale
        bias = self.position_scores(q, k, context) if "distances" in context else None
        output, weights = attend(q, k, v, 1.0, context.get("mask"), self.dropout, output_attentions, bias)
        return merge_heads(output), weights

    def position_scores(self, q: mx.array, k: mx.array, context: Context) -> mx.array:
        """Return c2p + p2c, (B, H, L, L); `q` is scaled."""
        with shared_by_rows():  # the distances are those of all texts
            distances = self.pos_dropout(context["distances"])  # (1, n, D)
            if C2P in self._terms:
                projection = self.pos_key_proj if "pos_key_proj" in self else self.key_proj
                keys = self._of_distances(projection(distances), context)
            if P2C in self._terms:
                projection = self.pos_query_proj if "pos_query_proj" in self else self.query_proj
                queries = self._of_distances(projection(distances), context) * self.scale
        terms = []
        if C2P in self._terms:
            terms.append(skewed(q @ keys[:, :, ::-1].swapaxes(-1, -2)))
        if P2C in self._terms:
            terms.append(skewed(k @ queries.swapaxes(-1, -2)).swapaxes(-1, -2))
        return sum(terms[1:], terms[0])

    def _of_distances(self, rows: mx.array, context: Context) -> mx.array:
        """Return the vector of every distance 1 − L … L − 1, (1, n, D) -> (1, H, 2L − 1, Dh)."""
        # Rows are repeated before the product with the queries: the longer product is far cheaper than a gather after.
        rows = rows[:, context["rows"]] if "rows" in context else rows
        return split_heads(rows, self.num_heads)


class DebertaV2Layer(bert.BertLayer):
    """BERT's layer with another attention."""

    attention: Any

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.attention.self = DisentangledSelfAttention(config)

    def run(self, x: mx.array, context: Context, output_attentions: bool) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        attended, weights = self.attention.self(x, context, output_attentions)
        x = self.attention.output(attended, x)
        return self.output(self.intermediate(x), x), weights


class DebertaV2Convolution(nn.Module):
    """LayerNorm(residual + activation(conv(x))), 0 at padding; transformers `ConvLayer`."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        width, kernel, groups = config.hidden_size, config.conv_kernel_size, config.conv_groups
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.conv.weight = self.conv.weight.swapaxes(1, 2)  # torch's layout, as on disk: (out, in / groups, k)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self._activation = ACTIVATIONS[config.conv_act]

    def __call__(self, x: mx.array, residual: mx.array, real: mx.array | None) -> mx.array:
        """Map the input and the output of the first layer, (B, L, D) each, to (B, L, D); `real` is (B, L)."""
        conv = self.conv
        x = mx.conv1d(x, conv.weight.swapaxes(1, 2), padding=conv.padding, groups=conv.groups) + conv.bias
        x = self.LayerNorm(residual + self._activation(self.dropout(x)))
        return x if real is None else mx.where(real[..., None], x, 0)


class DebertaV2Encoder(nn.Module):
    """The stack of layers, the table of distances and the convolution."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.layer = [DebertaV2Layer(config) for _ in range(config.num_hidden_layers)]
        if config.relative_attention:
            self.rel_embeddings = nn.Embedding(config.distance_rows, config.hidden_size)
        if config.norm_rel_ebd:
            self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.conv_kernel_size:
            self.conv = DebertaV2Convolution(config)


class DebertaV2Core(Encoder):
    """Embeddings and layers."""

    config: DebertaV2Config
    layers_path = "encoder.layer"

    def __init__(self, config: DebertaV2Config, add_pooling_layer: bool = False):
        """Build a random encoder; `add_pooling_layer` changes nothing, since this encoder has no pooler."""
        super().__init__(config)
        self.embeddings = DebertaV2Embeddings(config)
        self.encoder = DebertaV2Encoder(config)

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings, and masks and distances for the layers."""
        context = self._distances(inputs.shape[1])
        keep, real = inputs.keep, None
        if keep is not None:
            context["mask"] = keep
            context["real"] = real = keep.any(axis=(1, 2))  # (B, L): the tokens that any other one attends to
        return self.embeddings(inputs, real), context

    def _distances(self, length: int) -> Context:
        """Return the normed rows that the distances of this length have, and which of them each distance has.

        "distances": (1, n, D), computed once for all layers. "rows": (2L − 1,), where distances share a row.
        """
        if not (self.config.relative_attention and self.config.pos_att_type):
            return {}
        rows = self.config.rows_of_distances(length)
        first, last = int(rows[0]), int(rows[-1])
        table = self.encoder.rel_embeddings.weight[first : last + 1]
        if "LayerNorm" in self.encoder:
            table = self.encoder.LayerNorm(table)
        shared = {} if np.array_equal(rows, np.arange(first, last + 1)) else {"rows": mx.array(rows - first)}
        return {"distances": table[None], **shared}

    def run_layer(
        self, i: int, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Run layer `i`; the convolution runs beside the first one."""
        output, weights = self.encoder.layer[i].run(x, context, output_attentions)
        if i == 0 and "conv" in self.encoder:
            output = self.encoder.conv(x, output, context.get("real"))
        return output, weights

    def layer_modules(self, i: int) -> tuple[nn.Module, ...]:
        """Return layer `i`, and the convolution beside the first one."""
        conv = (self.encoder.conv,) if i == 0 and "conv" in self.encoder else ()
        return (self.encoder.layer[i], *conv)

    def depth_of(self, name: str) -> int:
        """Return 0 for the embeddings and the table of distances, i + 1 for layer i, 1 for the convolution."""
        return 1 if name.startswith("encoder.conv.") else super().depth_of(name)


# The checkpoint's own heads


def _masked_lm_head(config: DebertaV2Config, labels: int, tensors: Iterable[str]) -> PretrainedHead:
    if config.legacy:
        return MaskedLMHead(bert.bert_predictions(config, tensors))
    act = ACTIVATIONS[config.hidden_act]
    return DebertaV2MaskedLMHead(config.hidden_size, config.vocab_size, act, config.layer_norm_eps)


def _fields_of(tensors: Iterable[str]) -> dict[str, Any]:
    """Return `legacy` as the kind of language-model head shows it, which Microsoft's config.json does not name."""
    kinds = {name.partition(".")[0] for name in tensors} & {"cls", "lm_predictions"}
    return {"legacy": "cls" in kinds} if len(kinds) == 1 else {}


def _context_pooler(config: DebertaV2Config) -> ContextPooler:
    return ContextPooler(config.hidden_size, ACTIVATIONS[config.pooler_hidden_act], config.pooler_dropout)


def _sequence_head(config: DebertaV2Config, labels: int, tensors: Iterable[str]) -> PretrainedHead:
    return DebertaV2SequenceHead(_context_pooler(config), config.hidden_size, labels, config.pooled_dropout)


def _choice_head(config: DebertaV2Config, labels: int, tensors: Iterable[str]) -> PretrainedHead:
    return DebertaV2ChoiceHead(_context_pooler(config), config.hidden_size, config.pooled_dropout)


# The facts about DeBERTa-v2

_LM, _POOLED, _LABELS = ("cls.predictions.", "lm_predictions."), ("pooler.", "classifier."), "classifier"
_TIED_BIAS = ("cls.predictions.decoder.bias", "cls.predictions.bias")

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
            HeadKind.MASKED_LM, (), _masked_lm_head, tied_bias=_TIED_BIAS, optional=_LM, one_of_optional=True
        ),
        "DebertaV2ForSequenceClassification": HeadClass(HeadKind.SEQUENCE, _POOLED, _sequence_head, labels=_LABELS),
        "DebertaV2ForTokenClassification": HeadClass(
            HeadKind.TOKEN, (f"{_LABELS}.",), bert.token_head, labels=_LABELS
        ),
        "DebertaV2ForMultipleChoice": HeadClass(HeadKind.CHOICE, _POOLED, _choice_head),
        "DebertaV2ForQuestionAnswering": HeadClass(HeadKind.SPAN, ("qa_outputs.",), bert.span_head),
    },
    tables=bert.TABLES,
    tokenizer_class="DebertaV2Tokenizer",
    has_token_types=True,
    tolerances=bert.TOLERANCES,
    projections={name: f"{name}_proj" for name in ("query", "key", "value")},
    fields_of=_fields_of,
    # Measured with benchmarks/distances.py: at 4 bits the table costs a token's vector as much as the words do, and
    # scores of distances in float32 bring half precision no nearer to float32.
    limits=("In half precision, scores of distances are scaled before their products; transformers divides after.",),
    kept={"encoder.rel_embeddings": "every layer reads this table, and it is small"},
    variants={"deberta": "DeBERTa v1, whose layers have one matrix for query, key and value"},
    tiny={
        **bert.TINY,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "type_vocab_size": 2,
    },
)

ARCHITECTURES = (DEBERTA_V2,)
