"""DeBERTa-v2's options, and mistakes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxbert.models.base import Context, Encoder
from tests.support.family import Mutation

VARIANTS: dict[str, dict[str, Any]] = {
    "v2-xlarge: own projections, a convolution": {
        "share_att_key": False,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "num_hidden_layers": 2,
    },
    "v3: 12 positions of a distance, no absolute ones": {
        "position_biased_input": False,
        "type_vocab_size": 0,
        "max_relative_positions": 12,
        "hidden_act": "gelu_new",
        "pad_token_id": 3,
    },
    "odd widths, one layer, plain distances of the query": {
        "vocab_size": 83,
        "hidden_size": 45,
        "embedding_size": 31,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "max_position_embeddings": 29,
        "num_hidden_layers": 1,
        "position_buckets": -1,
        "max_relative_positions": 8,
        "norm_rel_ebd": "none",
        "pos_att_type": "c2p",
        "type_vocab_size": 1,
        "hidden_act": "relu",
    },
    "plain distances of the key, own projection, a grouped convolution": {
        "position_buckets": -1,
        "max_relative_positions": 8,
        "share_att_key": False,
        "pos_att_type": ["p2c"],
        "conv_kernel_size": 5,
        "conv_groups": 4,
        "num_hidden_layers": 2,
        "pad_token_id": None,
    },
    "own projection of keys, odd buckets, a large eps": {
        "position_buckets": 7,
        "share_att_key": False,
        "pos_att_type": "C2P | none",
        "norm_rel_ebd": "None | Layer_Norm",
        "layer_norm_eps": 1e-3,
        "embedding_size": 64,
    },
    "shared projection of queries, three types": {"pos_att_type": "p2c", "type_vocab_size": 3, "hidden_act": "silu"},
    "no distances": {"relative_attention": False, "norm_rel_ebd": "none", "num_hidden_layers": 2},
}
XLARGE, V3, ODD = list(VARIANTS)[:3]
GROUPED = list(VARIANTS)[3]


def _attention(core: Encoder, i: int) -> Any:
    module: Any = core
    return module.encoder.layer[i].attention.self


def _scale_of_one_term(core: Encoder) -> None:
    _attention(core, 1).scale = core.config.head_size**-0.5


def _rolled_distances(core: Encoder) -> None:
    table: Any = core
    table = table.encoder.rel_embeddings
    table.weight = mx.roll(table.weight, 1, 0)


def _mirrored_distances(core: Encoder) -> None:
    table: Any = core
    table = table.encoder.rel_embeddings
    table.weight = table.weight[::-1]


def _with_scores(change: Callable[[Any, mx.array, mx.array, Context], mx.array]) -> Callable[[Encoder], None]:
    """Let the attention of layer 1 compute the scores of distances in another way."""

    def mutate(core: Encoder) -> None:
        attention = _attention(core, 1)
        attention.__class__ = type("Wrong", (type(attention),), {"position_scores": change})

    return mutate


def _transposed(self: Any, q: mx.array, k: mx.array, context: Context) -> mx.array:
    return super(type(self), self).position_scores(q, k, context).swapaxes(-1, -2)


def _exchanged(self: Any, q: mx.array, k: mx.array, context: Context) -> mx.array:
    return super(type(self), self).position_scores(k * self.scale, q / self.scale, context)


def _mirrored_kernel(core: Encoder) -> None:
    module: Any = core
    conv = module.encoder.conv.conv
    conv.weight = conv.weight[:, :, ::-1]


def _kernel_of_mlx(core: Encoder) -> None:
    module: Any = core
    conv = module.encoder.conv.conv
    conv.weight = conv.weight.swapaxes(1, 2).reshape(conv.weight.shape)


def _without_norm_of_conv(core: Encoder) -> None:
    module: Any = core
    norm = module.encoder.conv.LayerNorm
    norm.weight, norm.bias = mx.ones_like(norm.weight), mx.zeros_like(norm.bias)


MUTATIONS = (
    Mutation("no absolute positions", "embeddings", config={"position_biased_input": False}),
    Mutation("no types", "embeddings", config={"type_vocab_size": 0}),
    Mutation("another eps", "embeddings", config={"layer_norm_eps": 1e-3}),
    Mutation("no distances", 0, config={"relative_attention": False}),
    Mutation("own projections of distances", 0, config={"share_att_key": False}),
    Mutation("shared projections of distances", 0, config={"share_att_key": True}, variant=XLARGE),
    Mutation("c2p alone", 0, config={"pos_att_type": ["c2p"]}),
    Mutation("p2c alone", 0, config={"pos_att_type": ["p2c"]}),
    Mutation("no term of distances", 0, config={"pos_att_type": []}),
    Mutation("p2c for c2p", 0, config={"pos_att_type": "p2c"}, variant=ODD),
    Mutation("the table of distances not normed", 0, config={"norm_rel_ebd": "none"}),
    Mutation("buckets for another longest distance", 0, config={"max_relative_positions": 32}),
    Mutation("the longest distance from the positions", 0, config={"max_relative_positions": -1}, variant=V3),
    Mutation("plain distances for buckets", 0, config={"position_buckets": -1, "max_relative_positions": 8}),
    Mutation(
        "buckets for plain distances", 0, config={"position_buckets": 8, "max_relative_positions": 29}, variant=ODD
    ),
    Mutation("no convolution", 0, config={"conv_kernel_size": 0}, variant=XLARGE),
    Mutation("another activation of the convolution", 0, config={"conv_act": "tanh"}, variant=XLARGE),
    Mutation("the default activation of the convolution forgotten", 0, config={"conv_act": "gelu"}, variant=GROUPED),
    Mutation("another activation", 0, config={"hidden_act": "gelu_new"}),
    Mutation("half as many heads", 0, config={"num_attention_heads": 2}),
    Mutation("distances off by one", 0, change=_rolled_distances),
    Mutation("distances with the wrong sign", 0, change=_mirrored_distances),
    Mutation("a scale without the number of terms", 1, change=_scale_of_one_term),
    Mutation("scores of distances transposed", 1, change=_with_scores(_transposed)),
    Mutation("queries and keys exchanged with distances", 1, change=_with_scores(_exchanged)),
    Mutation("the kernel from right to left", 0, change=_mirrored_kernel, variant=XLARGE),
    Mutation("the kernel in the layout of MLX", 0, change=_kernel_of_mlx, variant=XLARGE),
    Mutation("the norm of the convolution forgotten", 0, change=_without_norm_of_conv, variant=XLARGE),
)
