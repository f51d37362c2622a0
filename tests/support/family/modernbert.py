"""ModernBERT's options, and mistakes with them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxbert.models.base import Encoder
from tests.support.family import Mutation

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def rope(of_global: float, of_local: float) -> dict[str, Any]:
    """Return `rope_parameters` with these bases."""
    bases = {GLOBAL: of_global, LOCAL: of_local}
    return {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}


VARIANTS: dict[str, dict[str, Any]] = {
    "no biases, as published": dict.fromkeys(
        ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias", "decoder_bias"), False
    ),
    "norms alone have a bias, a window that the texts do not fill": {
        **dict.fromkeys(("attention_bias", "mlp_bias"), False),
        "local_attention": 200,
    },
    "odd widths, tanh-GELU, an odd window": {
        "vocab_size": 283,
        "hidden_size": 42,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "max_position_embeddings": 31,
        "hidden_activation": "gelu_new",
        "local_attention": 5,
        "norm_eps": 1e-3,
        "norm_bias": False,
    },
    "one layer": {"num_hidden_layers": 1, "attention_bias": False},
    "every layer global, the old spelling of the bases": {
        "global_attn_every_n_layers": 1,
        "global_rope_theta": 500.0,
        "local_rope_theta": 7.0,
        "mlp_bias": False,
    },
    "local layers first, the new spelling": {
        "num_hidden_layers": 4,
        "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL],
        "global_attn_every_n_layers": None,
        "rope_parameters": rope(11.0, 3000.0),
        "hidden_activation": "silu",
    },
    "a token sees itself alone in local layers": {"local_attention": 1},
}


def _layers(core: Encoder) -> list[Any]:
    return core["layers"]  # type: ignore[no-any-return]


def _swap_the_halves_of_glu(core: Encoder) -> None:
    projection = _layers(core)[1].mlp.Wi
    for name, array in dict(projection.parameters()).items():
        projection[name] = mx.concatenate(mx.split(array, 2)[::-1])


def _norm_before_the_first_attention(core: Encoder) -> None:
    _layers(core)[0].attn_norm = nn.LayerNorm(core.config.hidden_size, eps=core.config.norm_eps)  # type: ignore


def _no_norm_before_attention(core: Encoder) -> None:
    del _layers(core)[1].attn_norm


def _pair_neighbours(core: Encoder) -> None:
    """Rotate elements 2 i and 2 i + 1 as a pair: the same as the rows of queries and keys in another order."""
    projection = _layers(core)[1].attn.Wqkv
    half = core.config.hidden_size // core.config.num_attention_heads // 2
    order = mx.stack([mx.arange(half), mx.arange(half) + half], axis=1).reshape(-1)
    for name, array in dict(projection.parameters()).items():
        q, k, v = mx.split(array, 3)
        heads = core.config.num_attention_heads
        q, k = (x.reshape(heads, 2 * half, *x.shape[1:])[:, order].reshape(x.shape) for x in (q, k))
        projection[name] = mx.concatenate([q, k, v])


def _interleave_queries_keys_and_values(core: Encoder) -> None:
    """Read the fused rows head by head: (H, 3, Dh) instead of (3, H, Dh)."""
    projection, heads = _layers(core)[0].attn.Wqkv, core.config.num_attention_heads
    for name, array in dict(projection.parameters()).items():
        projection[name] = array.reshape(heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _no_bias(path: str, layer: int) -> Any:
    def change(core: Encoder) -> None:
        module: Any = _layers(core)[layer]
        for name in path.split("."):
            module = module[name]
        module.bias = mx.zeros_like(module.bias)

    return change


def _no_final_norm(core: Encoder) -> None:
    core.__class__ = type("Mutant", (type(core),), {"finish": lambda self, x: x})


def _no_bias_of_the_final_norm(core: Encoder) -> None:
    norm: Any = core["final_norm"]
    norm.bias = mx.zeros_like(norm.bias)


def _no_bias_of_the_embeddings_norm(core: Encoder) -> None:
    norm: Any = core["embeddings"].norm
    norm.bias = mx.zeros_like(norm.bias)


MUTATIONS = (
    Mutation("the other half of GLU activated", 1, change=_swap_the_halves_of_glu),
    Mutation("a norm before attention in layer 0", 0, change=_norm_before_the_first_attention),
    Mutation("no norm before attention in layer 1", 1, change=_no_norm_before_attention),
    Mutation("neighbours rotated as pairs", 1, change=_pair_neighbours),
    Mutation("fused rows head by head", 0, change=_interleave_queries_keys_and_values),
    Mutation("no bias of Wqkv", 0, change=_no_bias("attn.Wqkv", 0)),
    Mutation("no bias of attention's output", 2, change=_no_bias("attn.Wo", 2)),
    Mutation("no bias of the norm before attention", 1, change=_no_bias("attn_norm", 1)),
    Mutation("no bias of the norm before GLU", 1, change=_no_bias("mlp_norm", 1)),
    Mutation("no bias of Wi", 0, change=_no_bias("mlp.Wi", 0)),
    Mutation("no bias of GLU's output", 2, change=_no_bias("mlp.Wo", 2)),
    Mutation("no final norm", "finish", change=_no_final_norm),
    Mutation("no bias of the final norm", "finish", change=_no_bias_of_the_final_norm),
    Mutation("no bias of the embeddings' norm", "embeddings", change=_no_bias_of_the_embeddings_norm),
    Mutation("another eps", "embeddings", config={"norm_eps": 1e-3}),
    Mutation("another activation", 0, config={"hidden_activation": "gelu_new"}),
    Mutation("half as many heads", 0, config={"num_attention_heads": 2}),
    Mutation("the bases exchanged", 0, config={"rope_parameters": rope(10_000.0, 160_000.0)}),
    Mutation("one base for both", 1, config={"rope_parameters": rope(160_000.0, 160_000.0)}),
    Mutation("a window that is one wider", 1, config={"local_attention": 8}),
    Mutation("a window that is one narrower", 1, config={"local_attention": 5}),
    Mutation("a window of the whole width on each side", 1, config={"local_attention": 12}),
    Mutation(
        "every third layer global, not every second",
        2,
        config={"layer_types": [GLOBAL, LOCAL, LOCAL], "global_attn_every_n_layers": 3},
    ),
    Mutation(
        "every layer global",
        1,
        config={"layer_types": [GLOBAL] * 3, "global_attn_every_n_layers": 1},
    ),
    Mutation(
        "the first layer global, whatever layer_types says",
        0,
        config={"layer_types": [GLOBAL, LOCAL, GLOBAL, LOCAL]},
        variant="local layers first, the new spelling",
    ),
    Mutation(
        "the new spelling of the bases ignored",
        0,
        config={"rope_parameters": rope(160_000.0, 10_000.0)},
        variant="local layers first, the new spelling",
    ),
    Mutation(
        "the old spelling of the bases ignored",
        0,
        config={"rope_parameters": rope(160_000.0, 10_000.0)},
        variant="every layer global, the old spelling of the bases",
    ),
)
