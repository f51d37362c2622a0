"""RoBERTa's options, and mistakes with them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxbert.models.base import Encoder, Inputs
from tests.support.family import Mutation, with_positions

TWO_TYPES = "odd widths, tanh-GELU, two types"
VARIANTS: dict[str, dict[str, Any]] = {
    TWO_TYPES: {
        "vocab_size": 83,
        "hidden_size": 45,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "max_position_embeddings": 31,
        "hidden_act": "gelu_new",
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-5,
    },
    "one layer, padding by id 0": {"num_hidden_layers": 1, "pad_token_id": 0},
    "padding in the middle of the vocabulary": {"pad_token_id": 7},
}


def _from_zero(core: Encoder) -> None:
    with_positions(core, lambda self, inputs: mx.arange(inputs.shape[1])[None])


def _from_the_mask(core: Encoder) -> None:
    def positions(self: Any, inputs: Inputs) -> mx.array:
        real = mx.ones(inputs.shape, mx.int32) if inputs.mask is None else inputs.mask.astype(mx.int32)
        return mx.cumsum(real, axis=1) * real + self.config.first_position - 1

    with_positions(core, positions)


def _one_too_low(core: Encoder) -> None:
    def positions(self: Any, inputs: Inputs) -> mx.array:
        real = (inputs.ids != self.config.pad_token_id).astype(mx.int32)
        return mx.cumsum(real, axis=1) * real + self.config.pad_token_id - real

    with_positions(core, positions)


def _padding_counted_on(core: Encoder) -> None:
    """Give padding the position of the token before it, not that of padding."""

    def positions(self: Any, inputs: Inputs) -> mx.array:
        real = (inputs.ids != self.config.pad_token_id).astype(mx.int32)
        return mx.cumsum(real, axis=1) + self.config.pad_token_id

    with_positions(core, positions)


def _types_exchanged(core: Encoder) -> None:
    table: Any = core.embeddings.token_type_embeddings
    table.weight = table.weight[::-1]


def _without_type(core: Encoder) -> None:
    table: Any = core.embeddings.token_type_embeddings
    table.weight = mx.zeros_like(table.weight)


def _pooled_mean(core: Encoder) -> None:
    def pool(self: Any, x: mx.array) -> mx.array:
        return mx.tanh(self.pooler.dense(x.mean(axis=1)))

    core.__class__ = type("Mutant", (type(core),), {"pool": pool})


def _over_padding(core: Encoder) -> None:
    with_positions(core, lambda self, inputs: mx.arange(inputs.shape[1])[None] + self.config.first_position)


MUTATIONS = (
    Mutation("positions from 0", "embeddings", change=_from_zero),
    Mutation("positions from the mask", "embeddings", change=_from_the_mask),
    Mutation("positions that count padding", "embeddings", change=_over_padding),
    Mutation("positions that begin one too low", "embeddings", change=_one_too_low),
    Mutation("padding counted on", "embeddings", change=_padding_counted_on),
    Mutation("the one type left out", "embeddings", change=_without_type),
    Mutation("two types exchanged", "embeddings", change=_types_exchanged, variant=TWO_TYPES),
    Mutation("a pooler of the mean", "pooler", change=_pooled_mean),
    Mutation("erf-GELU for tanh-GELU", 0, config={"hidden_act": "gelu"}, variant=TWO_TYPES),
    Mutation("padding by another id", "embeddings", config={"pad_token_id": 0}),
    Mutation("another eps", "embeddings", config={"layer_norm_eps": 1e-3}),
    Mutation("another activation", 0, config={"hidden_act": "gelu_new"}),
    Mutation("half as many heads", 0, config={"num_attention_heads": 2}),
)
