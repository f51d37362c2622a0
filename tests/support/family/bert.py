"""BERT's options, and mistakes with them."""

from __future__ import annotations

from typing import Any

from mlxbert.models.base import Encoder
from tests.support.family import Mutation

VARIANTS: dict[str, dict[str, Any]] = {
    "odd widths, tanh-GELU, one type": {
        "vocab_size": 83,
        "hidden_size": 45,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "max_position_embeddings": 29,
        "hidden_act": "gelu_new",
        "type_vocab_size": 1,
        "pad_token_id": 3,
    },
    "one layer, ReLU, a large eps": {"num_hidden_layers": 1, "hidden_act": "relu", "layer_norm_eps": 1e-3},
    "three types, SiLU, no padding token": {"type_vocab_size": 3, "hidden_act": "silu", "pad_token_id": None},
}


def _types_forgotten(core: Encoder) -> None:
    table: Any = core.embeddings.token_type_embeddings
    table.weight = table.weight[:1] + 0 * table.weight


MUTATIONS = (
    Mutation("the types of the second text forgotten", "embeddings", change=_types_forgotten),
    Mutation("another eps", "embeddings", config={"layer_norm_eps": 1e-3}),
    Mutation("another activation", 0, config={"hidden_act": "gelu_new"}),
    Mutation("half as many heads", 0, config={"num_attention_heads": 2}),
    Mutation("erf-GELU for tanh-GELU", 0, config={"hidden_act": "gelu"}, variant="odd widths, tanh-GELU, one type"),
)
