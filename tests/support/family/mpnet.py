"""MPNet's options, and mistakes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbert.models import mpnet
from mlxbert.models.base import Encoder, Inputs
from tests.support.family import Mutation, with_positions

VARIANTS: dict[str, dict[str, Any]] = {
    "odd widths, tanh-GELU, more buckets, long texts": {
        "vocab_size": 83,
        "hidden_size": 45,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "max_position_embeddings": 170,
        "hidden_act": "gelu_new",
        "relative_attention_num_buckets": 40,
    },
    "one layer, another id for padding": {"num_hidden_layers": 1, "pad_token_id": 5, "layer_norm_eps": 1e-5},
    "no id for padding, one head": {"pad_token_id": None, "num_attention_heads": 1},
}


def _from_zero(core: Encoder) -> None:
    with_positions(core, lambda self, inputs: mx.arange(inputs.shape[1])[None])


def _over_padding(core: Encoder) -> None:
    with_positions(core, lambda self, inputs: mx.arange(inputs.shape[1])[None] + 2)


def _from_the_mask(core: Encoder) -> None:
    def positions(self: Any, inputs: Inputs) -> mx.array:
        real = mx.ones(inputs.shape, mx.int32) if inputs.mask is None else inputs.mask.astype(mx.int32)
        return mx.cumsum(real, axis=1) * real + 1

    with_positions(core, positions)


def _from_the_configured_padding(core: Encoder) -> None:
    def positions(self: Any, inputs: Inputs) -> mx.array:
        real = (inputs.ids != self.config.pad_token_id).astype(mx.int32)
        return mx.cumsum(real, axis=1) * real + 1

    with_positions(core, positions)


def _with_bias(core: Encoder, change: Callable[[Any, int, mx.array], mx.array]) -> None:
    """Let layer i have another bias on its scores, from (encoder, i, the right bias)."""
    base = type(core)

    def run_layer(self: Any, i: int, x: mx.array, context: Any, *options: Any) -> Any:
        return base.run_layer(self, i, x, {**context, "bias": change(self, i, context["bias"])}, *options)

    core.__class__ = type("Mutant", (base,), {"run_layer": run_layer})


def _no_bias(core: Encoder) -> None:
    _with_bias(core, lambda self, i, bias: mx.zeros_like(bias))


def _bias_of_the_first_layer_alone(core: Encoder) -> None:
    _with_bias(core, lambda self, i, bias: bias if i == 0 else mx.zeros_like(bias))


def _scaled_bias(core: Encoder) -> None:
    _with_bias(core, lambda self, i, bias: bias * self.encoder.layer[i].attention.attn.scale)


def _query_minus_key(core: Encoder) -> None:
    _with_bias(core, lambda self, i, bias: bias.swapaxes(-1, -2))


def _heads_exchanged(core: Encoder) -> None:
    table: Any = core["encoder"].relative_attention_bias
    table.weight = table.weight[:, ::-1]


def _with_buckets(core: Encoder, buckets: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let the encoder sort distances into other buckets."""

    def bias(self: Any, i: int, right: mx.array) -> mx.array:
        places = np.arange(right.shape[-1])
        table = self.encoder.relative_attention_bias
        return table(mx.array(buckets(places[None] - places[:, None]))).transpose(2, 0, 1)[None]

    _with_bias(core, bias)


def _one_direction(core: Encoder) -> None:
    _with_buckets(core, lambda distances: mpnet.relative_buckets(-np.abs(distances)))


def _logarithm_to_64(core: Encoder) -> None:
    """Let the logarithm end at a distance of 64 instead of 128."""

    def buckets(distances: np.ndarray) -> np.ndarray:
        n = np.abs(distances)
        far = np.minimum(8 + np.floor(8 * np.log(np.maximum(n, 8) / 8) / np.log(8)).astype(int), 15)
        return np.where(n < 8, n, far) + np.where(distances > 0, 16, 0)

    _with_buckets(core, buckets)


MUTATIONS = (
    Mutation("positions from 0", "embeddings", change=_from_zero),
    Mutation("positions from the mask", "embeddings", change=_from_the_mask),
    Mutation("positions that count padding", "embeddings", change=_over_padding),
    Mutation(
        "padding by the configured id",
        "embeddings",
        change=_from_the_configured_padding,
        variant="one layer, another id for padding",
    ),
    Mutation("no relative positions", 0, change=_no_bias),
    Mutation("relative positions in the first layer alone", 1, change=_bias_of_the_first_layer_alone),
    Mutation("relative positions times the scale of the scores", 0, change=_scaled_bias),
    Mutation("distances from key to query", 0, change=_query_minus_key),
    Mutation("distances without direction", 0, change=_one_direction),
    Mutation("another largest distance", 0, change=_logarithm_to_64),
    Mutation("heads exchanged in the table", 0, change=_heads_exchanged),
    Mutation("another eps", "embeddings", config={"layer_norm_eps": 1e-3}),
    Mutation("another activation", 0, config={"hidden_act": "gelu_new"}),
)
