"""ALBERT's options, and mistakes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxbert.models.base import Encoder
from tests.support.family import Mutation

TWO_INNER = "two groups of two layers"
UNEVEN = "fourteen groups for eighteen layers"
VARIANTS: dict[str, dict[str, Any]] = {
    TWO_INNER: {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2},
    "odd widths, one layer, ReLU, one type": {
        "vocab_size": 83,
        "embedding_size": 19,
        "hidden_size": 45,
        "num_hidden_layers": 1,
        "num_hidden_groups": 1,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "max_position_embeddings": 29,
        "hidden_act": "relu",
        "type_vocab_size": 1,
        "pad_token_id": 3,
    },
    "one group for all, erf-GELU, a large eps": {
        "num_hidden_layers": 4,
        "num_hidden_groups": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-3,
    },
    "embeddings as wide as hidden states, a group for each layer": {"embedding_size": 48, "num_hidden_groups": 3},
    "embeddings wider than hidden states, no padding token": {"embedding_size": 60, "pad_token_id": None},
    UNEVEN: {"num_hidden_layers": 18, "num_hidden_groups": 14, "hidden_size": 16, "intermediate_size": 20},
}


def _placed(place: Callable[[Any, int], tuple[int, int]]) -> Callable[[Encoder], None]:
    """Let run `i` use the layer `place(config, i)`: a group, and a layer in it."""

    def change(core: Encoder) -> None:
        config: Any = core.config

        def run_layer(self: Any, i: int, x: mx.array, context: Any, output_attentions: bool = False) -> Any:
            group, inner = place(config, i)
            layer = self.encoder.albert_layer_groups[group].albert_layers[inner]
            return layer(x, context.get("mask"), output_attentions)

        core.__class__ = type("Mutant", (type(core),), {"run_layer": run_layer})

    return change


def _in_turn(config: Any, i: int) -> tuple[int, int]:
    return i // config.inner_group_num % config.num_hidden_groups, i % config.inner_group_num


def _whole_numbers(config: Any, i: int) -> tuple[int, int]:
    step, inner = divmod(i, config.inner_group_num)
    return step * config.num_hidden_groups // config.num_hidden_layers, inner


def _one_group(config: Any, i: int) -> tuple[int, int]:
    return 0, i % config.inner_group_num


def _by_the_run(config: Any, i: int) -> tuple[int, int]:
    return i * config.num_hidden_groups // config.num_layers % config.num_hidden_groups, i % config.inner_group_num


def _inner_backwards(config: Any, i: int) -> tuple[int, int]:
    group, inner = config.place(i)
    return group, config.inner_group_num - 1 - inner


def _inner_one_after_the_other(config: Any, i: int) -> tuple[int, int]:
    inner, step = divmod(i, config.num_hidden_layers)
    return config.place(step * config.inner_group_num)[0], inner


def _runs(difference: int) -> Callable[[Encoder], None]:
    """Let the encoder run this many layers more."""

    def change(core: Encoder) -> None:
        count, base = core.num_layers, type(core)

        def run_layer(self: Any, i: int, *inputs: Any) -> Any:
            return base.run_layer(self, min(i, count - 1), *inputs)

        methods = {"run_layer": run_layer, "num_layers": property(lambda self: count + difference)}
        core.__class__ = type("Mutant", (base,), methods)

    return change


def _keep_one_inner_layer(core: Encoder) -> None:
    """Let both layers of a group be its first one."""
    for group in core.encoder.albert_layer_groups:
        group.albert_layers = [group.albert_layers[0], group.albert_layers[0]]


def _without_map_bias(core: Encoder) -> None:
    core.encoder.embedding_hidden_mapping_in.bias = mx.zeros_like(core.encoder.embedding_hidden_mapping_in.bias)


def _norm_after_the_map(core: Encoder) -> None:
    base = type(core)

    def embed_inputs(self: Any, inputs: Any) -> Any:
        x, context = base.embed_inputs(self, inputs)
        return mx.fast.layer_norm(x, None, None, 1e-12), context

    core.__class__ = type("Mutant", (base,), {"embed_inputs": embed_inputs})


def _pooled(pool: Callable[[Any, mx.array], mx.array]) -> Callable[[Encoder], None]:
    def change(core: Encoder) -> None:
        core.__class__ = type("Mutant", (type(core),), {"pool": pool})

    return change


def _exchange_shared(core: Encoder) -> None:
    """Exchange query and key in the layer that the first two runs share."""
    attention = core.layer_modules(0)[0].attention
    attention.query, attention.key = attention.key, attention.query


MUTATIONS = (
    Mutation("groups taken in turn", 1, change=_placed(_in_turn)),
    Mutation("one group for every layer", 2, change=_placed(_one_group)),
    Mutation("a group's number divided as whole numbers", 9, change=_placed(_whole_numbers), variant=UNEVEN),
    Mutation("a group for half of the runs", 3, change=_placed(_by_the_run), variant=TWO_INNER),
    Mutation("the layers of a group backwards", 0, change=_placed(_inner_backwards), variant=TWO_INNER),
    Mutation(
        "a group's first layer in every step, then its second",
        1,
        change=_placed(_inner_one_after_the_other),
        variant=TWO_INNER,
    ),
    Mutation("a group's first layer twice", 1, change=_keep_one_inner_layer, variant=TWO_INNER),
    Mutation("query and key of a shared layer exchanged", 0, change=_exchange_shared),
    Mutation("one run too few", 2, change=_runs(-1)),
    Mutation("one run too many", 3, change=_runs(1)),
    Mutation("one run too few with two layers in a group", 5, change=_runs(-1), variant=TWO_INNER),
    Mutation("a layer too few, which moves the groups", 1, config={"num_hidden_layers": 2}),
    Mutation("a layer too many", 3, config={"num_hidden_layers": 4}),
    Mutation("the embeddings' map without its bias", "embeddings", change=_without_map_bias),
    Mutation("a norm after the embeddings' map", "embeddings", change=_norm_after_the_map),
    Mutation("a pooler without tanh", "pooler", change=_pooled(lambda self, x: self.pooler(x[:, 0]))),
    Mutation("a pooler of the mean", "pooler", change=_pooled(lambda self, x: mx.tanh(self.pooler(x.mean(axis=1))))),
    Mutation("erf-GELU for tanh-GELU", 0, config={"hidden_act": "gelu"}),
    Mutation("another eps", "embeddings", config={"layer_norm_eps": 1e-3}),
    Mutation("half as many heads", 0, config={"num_attention_heads": 2}),
)
