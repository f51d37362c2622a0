"""MPNet: Song et al. 2020, https://arxiv.org/abs/2004.09297; transformers `models/mpnet/modeling_mpnet.py`.

Its layers are BERT's with other names, and with a bias on the attention scores: a number for each head and each bucket
of distances between two tokens, T5's (https://arxiv.org/abs/1910.10683), shared by all layers. Positions are counted
from the ids as in RoBERTa, but padding always has the id 1. There are no token types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.pretrained import Dropout, LayerNorm
from mlxbert.model_arrays import embedded
from mlxbert.models.architecture import MappingLimits, PrecisionLimits, Tolerances
from mlxbert.models.attention import attend, merge_heads, split_heads
from mlxbert.models.base import Context, Encoder, Inputs
from mlxbert.models.bert import (
    BERT,
    BertConfig,
    BertIntermediate,
    BertLayerOutput,
    BertPooler,
)
from mlxbert.models.config_fields import Checks, ConfigError, size
from mlxbert.models.roberta import ROBERTA

_PADDING = 1
"""The id of padding, and its position: transformers' `MPNetEmbeddings.padding_idx`, which no configuration changes."""

_BUCKETS = 32
"""The buckets that distances fall into: transformers' `compute_position_bias` uses no other number."""


def bucket_counts(name: str, value: Any) -> int:
    """Return the rows of the table of relative positions, of which the first 32 are used."""
    if size(name, value) < _BUCKETS:
        raise ConfigError(
            f"config.json: {name} must be at least {_BUCKETS}, not {value}: transformers sorts distances into "
            f"{_BUCKETS} buckets whatever it says, and would read outside such a table"
        )
    return int(value)


@dataclass(frozen=True)
class MPNetConfig(BertConfig):
    """The fields of an MPNet configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/mpnet/configuration_mpnet.py`.
    """

    model_type: ClassVar[str] = "mpnet"

    vocab_size: int = 30527
    pad_token_id: int | None = 1
    relative_attention_num_buckets: int = 32

    CHECKS: ClassVar[Checks] = {
        **{
            name: check
            for name, check in BertConfig.CHECKS.items()
            if name not in ("type_vocab_size", "classifier_dropout")
        },
        "relative_attention_num_buckets": bucket_counts,
    }

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest input, special ones included."""
        return self.max_position_embeddings - _PADDING - 1

    @property
    def table_rows(self) -> Mapping[str, int]:
        """The number of different ids that each argument of the encoder may hold."""
        return {"input_ids": self.vocab_size, "position_ids": self.max_position_embeddings}

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> MPNetConfig:
        """Read a parsed `config.json`, as `EncoderConfig.from_hf`.

        Raises:
            ConfigError: also if the tables have no row for padding, or no position is left for a token.
        """
        parsed = super().from_hf(config)
        if parsed.vocab_size <= _PADDING:
            raise ConfigError(f"config.json: vocab_size {parsed.vocab_size} has no row for padding, id {_PADDING}")
        if parsed.max_length < 1:
            raise ConfigError(
                f"config.json: max_position_embeddings {parsed.max_position_embeddings} leaves no position for a "
                f"token after {_PADDING}, the position of padding"
            )
        return parsed


class MPNetEmbeddings(nn.Module):
    """LayerNorm(word + position); transformers `MPNetEmbeddings`."""

    def __init__(self, config: MPNetConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(self, inputs: Inputs, counted: mx.array) -> mx.array:
        """Ids (B, L) to embeddings (B, L, D).

        Args:
            inputs: types are ignored.
            counted: positions (B, L) or (1, L) if the caller gives none.

        Raises:
            InputError: an id that its table does not have; NaN instead while the call is traced.
        """
        words = inputs.embeds
        if words is None:
            assert inputs.ids is not None  # one of the two is there
            words = embedded("input_ids", self.word_embeddings, inputs.ids)
        if inputs.positions is None:
            positions = self.position_embeddings(counted)
        else:
            positions = embedded("position_ids", self.position_embeddings, inputs.positions)
        return self.dropout(self.LayerNorm(words + positions))


class MPNetSelfAttention(nn.Module):
    """o(softmax(Q Kᵀ / √Dh + bias) V) over H heads; transformers `MPNetSelfAttention`."""

    def __init__(self, config: MPNetConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = config.head_size**-0.5
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.k = nn.Linear(config.hidden_size, config.hidden_size)
        self.v = nn.Linear(config.hidden_size, config.hidden_size)
        self.o = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def __call__(
        self, x: mx.array, bias: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L).

        Args:
            x: (B, L, D).
            bias: (1, H, L, L), added to the scores.
            mask: boolean, broadcasts to (B, H, L, L), True = attend.
            output_attentions: whether to return the weights.
        """
        q, k, v = (split_heads(projection(x), self.num_heads) for projection in (self.q, self.k, self.v))
        context, weights = attend(
            q, k, v, self.scale, mask, self.dropout, output_attentions, bias=bias.astype(q.dtype)
        )
        return self.o(merge_heads(context)), weights


class MPNetAttention(nn.Module):
    """LayerNorm(attention + input)."""

    def __init__(self, config: MPNetConfig):
        super().__init__()
        self.attn = MPNetSelfAttention(config)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self, x: mx.array, bias: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        output, weights = self.attn(x, bias, mask, output_attentions)
        return self.LayerNorm(self.dropout(output) + x), weights


class MPNetLayer(nn.Module):
    """Attention, then the feed-forward block, each with a residual and a LayerNorm after it."""

    def __init__(self, config: MPNetConfig):
        super().__init__()
        self.attention = MPNetAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertLayerOutput(config)

    def __call__(
        self, x: mx.array, bias: mx.array, mask: mx.array | None = None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        x, weights = self.attention(x, bias, mask, output_attentions)
        return self.output(self.intermediate(x), x), weights


class MPNetEncoder(nn.Module):
    """The stack of layers, and the table of relative positions that they share."""

    def __init__(self, config: MPNetConfig):
        super().__init__()
        self.layer = [MPNetLayer(config) for _ in range(config.num_hidden_layers)]
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_attention_heads)

    def bias(self, length: int) -> mx.array:
        """Return what the scores of each head get added, (1, H, L, L); positions of the caller's do not change it."""
        buckets = relative_buckets(np.arange(-(length - 1), length))
        values = self.relative_attention_bias(mx.array(buckets))  # (2L - 1, H), one row for each distance
        distances = mx.arange(length)[None] - mx.arange(length)[:, None] + (length - 1)  # (L, L), key minus query
        # Contiguous, because every layer adds it.
        return mx.contiguous(values[distances].transpose(2, 0, 1)[None])  # (1, H, L, L)


def relative_buckets(distances: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bucket of each distance, key minus query: 0 … 15 up to 0, 16 … 31 above 0.

    transformers `relative_position_bucket`: 8 buckets for the nearest distances, then 8 + ⌊2 log2(n / 8)⌋, at most 15.
    The logarithm is taken by comparing n² with 64 · 2^k, in whole numbers, so that no rounding moves a distance.
    """
    n = np.abs(distances).astype(np.int64)
    far = 8 + sum((n * n >= 64 * 2**k).astype(np.int64) for k in range(1, 8))
    return np.where(n < 8, n, far) + np.where(distances > 0, _BUCKETS // 2, 0)


class MPNetCore(Encoder):
    """Embeddings, layers and, if the checkpoint has one, pooler."""

    config: MPNetConfig

    layers_path = "encoder.layer"

    def __init__(self, config: MPNetConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = MPNetEmbeddings(config)
        self.encoder = MPNetEncoder(config)
        if add_pooling_layer:
            self.pooler = BertPooler(config)

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings; the bias of relative positions, and the mask if there is one."""
        context = {"bias": self.encoder.bias(inputs.shape[1])}
        if (keep := inputs.keep) is not None:
            context["mask"] = keep
        return self.embeddings(inputs, inputs.counted_positions(_PADDING)), context

    def run_layer(
        self, i: int, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Run layer `i`."""
        layer = self.encoder.layer[i]
        output: tuple[mx.array, mx.array | None] = layer(x, context["bias"], context.get("mask"), output_attentions)
        return output

    @property
    def padding_rows(self) -> Mapping[str, int]:
        """Return the rows of padding, of words and of positions, which have no gradient."""
        return {f"{TABLES[name]}.weight": _PADDING for name in ("word", "position")}


TABLES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
}

# all-mpnet-base-v2 enlarges rounding errors of some random ids a hundredfold: there PyTorch in float32 is up to 1.9e-4
# away from PyTorch in float64, and up to 2.9e-6 in a layer alone. Both limits are three times that
# (python -m benchmarks.parity_errors --only mpnet --seeds 6). On sentences it is 2.3e-6.
# Half precision moves such ids as much more. Its limits are three to five times what it costs most random ids of
# seeds 0 to 3: float16 3e-2 and 1 - 1.1e-3, with arithmetic in float16; bfloat16 1.2e-1 and 1 - 1.1e-2, with weights
# alone. (With arithmetic in bfloat16 a few random ids of seed 0 change sign.) Sentences: 4e-2 and 1 - 6e-4 at most.
_TOLERANCES = Tolerances(
    mapping=MappingLimits(cumulative=6e-4, local=9e-6),
    precision={
        **BERT.tolerances.precision,
        "float16": PrecisionLimits(max_rel=1.2e-1, cosine=0.995),
        "bfloat16": PrecisionLimits(max_rel=4e-1, cosine=0.96),
    },
)

MPNET = replace(
    BERT,  # its limits, and what begins the names
    model_type="mpnet",
    table="mpnet",
    config=MPNetConfig,
    encoder=MPNetCore,
    encoder_class="MPNetModel",
    prefix="mpnet.",
    # The classes of RoBERTa, with the same modules: transformers copied them.
    heads={f"MPNet{name.removeprefix('Roberta')}": head for name, head in ROBERTA.heads.items()},
    tables=TABLES,
    tokenizer_class="MPNetTokenizer",
    has_token_types=False,
    tolerances=_TOLERANCES,
    swift_names={},
    assumed=lambda config: False,
    known_to=frozenset(),
    variants={},  # not BERT's
    # 1.5 kB of all-mpnet-base-v2. At 4 bits it alone would cost its embeddings 0.0012 of mean cosine, because it
    # reaches from -11 to 3.
    kept={"encoder.relative_attention_bias": "every layer adds what this table holds, and it is small"},
    limits=(
        "Rounding errors of some inputs that are no text (random ids) grow a hundredfold in the trained layers of "
        "MPNet, in PyTorch too; those of sentences do not.",
    ),
    projections={"query": "q", "key": "k", "value": "v"},
    tiny={**BERT.tiny, "max_position_embeddings": 66, "pad_token_id": 1},
)

ARCHITECTURES = (MPNET,)
