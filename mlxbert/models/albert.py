"""ALBERT: Lan et al. 2019, https://arxiv.org/abs/1909.11942; transformers `models/albert/modeling_albert.py`.

It is BERT with fewer parameters. The embeddings have a width of their own, and a Linear maps them to that of the
hidden states. Layers share their parameters: there are `num_hidden_groups` groups of `inner_group_num` layers each,
and a layer is stored once and runs several times. A layer of the contract is one run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import Dropout, LayerNorm, SequenceClassificationHead
from heads.pretrained.albert import AlbertMaskedLMHead, AlbertPredictions, AlbertPretrainingHead
from mlxbert.activations import ACTIVATIONS
from mlxbert.models.architecture import Architecture, HeadClass, HeadKind
from mlxbert.models.attention import attend, merge_heads, split_heads
from mlxbert.models.base import Context, Encoder, Inputs
from mlxbert.models.bert import (
    TABLES,
    TOLERANCES,
    BertConfig,
    BertEmbeddings,
    choice_head,
    span_head,
    token_head,
)
from mlxbert.models.config_fields import Checks, ConfigError, layer_count, probability, size


@dataclass(frozen=True)
class AlbertConfig(BertConfig):
    """The fields of an ALBERT configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/albert/configuration_albert.py`. Published configurations also have
    `down_scale_factor`, `gap_size`, `net_structure_type` and `num_memory_blocks`. Neither transformers nor Google's
    `modeling.py` computes with them, so they are not read.
    """

    model_type: ClassVar[str] = "albert"

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float = 0.1

    CHECKS: ClassVar[Checks] = {
        **{name: check for name, check in BertConfig.CHECKS.items() if name != "classifier_dropout"},
        "embedding_size": size,
        "num_hidden_groups": layer_count,
        "inner_group_num": layer_count,
        "classifier_dropout_prob": probability,
    }

    @property
    def head_dropout(self) -> float:
        """Dropout before the last layer of a classifier."""
        return self.classifier_dropout_prob

    @property
    def num_layers(self) -> int:
        """The number of runs of a layer; transformers lists a hidden state for each."""
        return self.num_hidden_layers * self.inner_group_num

    def place(self, i: int) -> tuple[int, int]:
        """Return the group that run `i` uses, and the layer in it."""
        step, inner = divmod(i, self.inner_group_num)
        # Upstream's order of divisions: step · groups // layers differs for some sizes (18 layers in 14 groups).
        return int(step / (self.num_hidden_layers / self.num_hidden_groups)), inner

    def runs_of(self, group: int, inner: int) -> tuple[int, ...]:
        """Return the runs that use layer `inner` of a group, the lowest first."""
        return tuple(i for i in range(self.num_layers) if self.place(i) == (group, inner))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> AlbertConfig:
        """Read a parsed `config.json`, as `EncoderConfig.from_hf`.

        Raises:
            ConfigError: also if a group of layers never runs, or there are more than 1000 runs.
        """
        parsed = super().from_hf(config)
        if parsed.num_hidden_groups > parsed.num_hidden_layers:
            raise ConfigError(
                f"config.json: num_hidden_groups {parsed.num_hidden_groups} is more than num_hidden_layers "
                f"{parsed.num_hidden_layers}: some groups would never run; not computed here"
            )
        layer_count("num_hidden_layers · inner_group_num", parsed.num_layers)
        return parsed


class AlbertAttention(nn.Module):
    """LayerNorm(dense(self-attention) + input); transformers `AlbertAttention`."""

    def __init__(self, config: AlbertConfig):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scale = config.head_size**-0.5
        self.query = nn.Linear(D, D)
        self.key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)
        self.dense = nn.Linear(D, D)
        self.LayerNorm = LayerNorm(D, eps=config.layer_norm_eps)
        self.attention_dropout = Dropout(config.attention_probs_dropout_prob)
        self.output_dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L).

        `mask` is boolean and broadcasts to (B, H, L, L), True = attend.
        """
        q, k, v = (split_heads(projection(x), self.num_heads) for projection in (self.query, self.key, self.value))
        context, weights = attend(q, k, v, self.scale, mask, self.attention_dropout, output_attentions)
        return self.LayerNorm(x + self.output_dropout(self.dense(merge_heads(context)))), weights


class AlbertLayer(nn.Module):
    """Attention, then the feed-forward block, each with a residual and a LayerNorm after it.

    transformers' `AlbertLayer` has a dropout that it does not use: nothing is dropped after `ffn_output`.
    """

    def __init__(self, config: AlbertConfig):
        super().__init__()
        self.attention = AlbertAttention(config)
        self.ffn = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.full_layer_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self._activation = ACTIVATIONS[config.hidden_act]

    def __call__(
        self, x: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        x, weights = self.attention(x, mask, output_attentions)
        return self.full_layer_layer_norm(self.ffn_output(self._activation(self.ffn(x))) + x), weights


class AlbertLayerGroup(nn.Module):
    """The layers of one group, which run in sequence."""

    def __init__(self, config: AlbertConfig):
        super().__init__()
        self.albert_layers = [AlbertLayer(config) for _ in range(config.inner_group_num)]


class AlbertTransformer(nn.Module):
    """The map from the embeddings' width to that of the hidden states, and the groups."""

    def __init__(self, config: AlbertConfig):
        super().__init__()
        self.embedding_hidden_mapping_in = nn.Linear(config.embedding_size, config.hidden_size)
        self.albert_layer_groups = [AlbertLayerGroup(config) for _ in range(config.num_hidden_groups)]


class AlbertCore(Encoder):
    """Embeddings, groups of layers and, if the checkpoint has one, pooler."""

    config: AlbertConfig

    def __init__(self, config: AlbertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = AlbertTransformer(config)
        if add_pooling_layer:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings as wide as the hidden states, and the mask if there is one."""
        keep = inputs.keep
        x = self.encoder.embedding_hidden_mapping_in(self.embeddings(inputs))  # (B, L, E) -> (B, L, D)
        return x, {} if keep is None else {"mask": keep}

    def run_layer(
        self, i: int, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Run the layer that is `i`-th in sequence."""
        output: tuple[mx.array, mx.array | None] = self._layer(i)(x, context.get("mask"), output_attentions)
        return output

    def pool(self, x: mx.array) -> mx.array | None:
        """Return tanh(pooler(first token)), (B, D); None without a pooler."""
        return mx.tanh(self.pooler(x[:, 0])) if self.has_pooler else None

    def layer_modules(self, i: int) -> tuple[nn.Module, ...]:
        """Return the layer that run `i` uses."""
        return (self._layer(i),)

    def layer_name(self, i: int) -> str:
        """Return the path of the layer, or, if it runs several times, the run and the group."""
        group, inner = self.config.place(i)
        if len(self.config.runs_of(group, inner)) == 1:
            return f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"
        return f"layer {i} (group {group}" + (f", inner {inner})" if self.config.inner_group_num > 1 else ")")

    def depth_of(self, name: str) -> int:
        """Return 0 for the embeddings, i + 1 for a layer whose first run is `i`, the number of runs for the pooler."""
        if match := _LAYER.match(name):
            return self.config.runs_of(int(match[1]), int(match[2]))[0] + 1
        return self.num_layers if name.startswith("pooler.") else 0

    def _layer(self, i: int) -> AlbertLayer:
        group, inner = self.config.place(i)
        layer: AlbertLayer = self.encoder.albert_layer_groups[group].albert_layers[inner]
        return layer


_LAYER = re.compile(r"encoder\.albert_layer_groups\.(\d+)\.albert_layers\.(\d+)\.")


# The checkpoint's own heads


def _predictions(config: AlbertConfig, tensors: Iterable[str]) -> AlbertPredictions:
    names = set(tensors)
    own_bias = "predictions.decoder.bias" in names
    return AlbertPredictions(
        config.hidden_size,
        config.embedding_size,
        config.vocab_size,
        ACTIVATIONS[config.hidden_act],
        config.layer_norm_eps,
        bias="predictions.bias" in names or not own_bias,
        decoder_weight="predictions.decoder.weight" in names or not config.tie_word_embeddings,
        decoder_bias=own_bias,
    )


def _masked_lm_head(config: AlbertConfig, labels: int, tensors: Iterable[str]) -> AlbertMaskedLMHead:
    return AlbertMaskedLMHead(_predictions(config, tensors))


def _pretraining_head(config: AlbertConfig, labels: int, tensors: Iterable[str]) -> AlbertPretrainingHead:
    return AlbertPretrainingHead(_predictions(config, tensors), config.hidden_size, labels, config.head_dropout)


def _sequence_head(config: AlbertConfig, labels: int, tensors: Iterable[str]) -> SequenceClassificationHead:
    return SequenceClassificationHead(config.hidden_size, labels, config.head_dropout)


# The facts about ALBERT

_LM, _ORDER, _CLASSIFIER, _SPAN = "predictions.", "sop_classifier.", "classifier.", "qa_outputs."
_TIED_BIAS = ("predictions.decoder.bias", "predictions.bias")

ALBERT = Architecture(
    model_type="albert",
    table="albert",
    config=AlbertConfig,
    encoder=AlbertCore,
    encoder_class="AlbertModel",
    prefix="albert.",
    parts=("embeddings.", "encoder.", "pooler."),
    heads={
        "AlbertForPreTraining": HeadClass(
            HeadKind.PRETRAINING, (_LM, _ORDER), _pretraining_head, has_pooler=True, tied_bias=_TIED_BIAS
        ),
        "AlbertForMaskedLM": HeadClass(HeadKind.MASKED_LM, (_LM,), _masked_lm_head, tied_bias=_TIED_BIAS),
        "AlbertForSequenceClassification": HeadClass(
            HeadKind.SEQUENCE, (_CLASSIFIER,), _sequence_head, has_pooler=True, labels="classifier"
        ),
        "AlbertForTokenClassification": HeadClass(HeadKind.TOKEN, (_CLASSIFIER,), token_head, labels="classifier"),
        "AlbertForMultipleChoice": HeadClass(HeadKind.CHOICE, (_CLASSIFIER,), choice_head, has_pooler=True),
        "AlbertForQuestionAnswering": HeadClass(HeadKind.SPAN, (_SPAN,), span_head),
    },
    tables=TABLES,
    tokenizer_class="AlbertTokenizer",
    # The table has a row for the second text, but transformers 5's tokenizer gives all tokens type 0.
    has_token_types=False,
    tolerances=TOLERANCES,
    tiny={
        "vocab_size": 97,
        "embedding_size": 24,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_hidden_groups": 2,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
)

ARCHITECTURES = (ALBERT,)
