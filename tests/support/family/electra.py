"""ELECTRA's options, and mistakes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxbert.models.base import Encoder
from tests.support.family import Mutation

VARIANTS: dict[str, dict[str, Any]] = {
    "embeddings wider than the layers, odd widths, tanh-GELU": {
        "vocab_size": 83,
        "embedding_size": 61,
        "hidden_size": 45,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "max_position_embeddings": 31,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
    },
    "embeddings as wide as the layers": {"embedding_size": 48, "type_vocab_size": 3},
    "one layer, ReLU, one type, no padding token": {
        "num_hidden_layers": 1,
        "hidden_act": "relu",
        "type_vocab_size": 1,
        "pad_token_id": None,
    },
}


def _without_projected_bias(core: Encoder) -> None:
    core.embeddings_project.bias = mx.zeros_like(core.embeddings_project.bias)


def _projected_before_the_norm(core: Encoder) -> None:
    """Project the sum of the embeddings, and norm that."""
    norm, project = core.embeddings.LayerNorm, core.embeddings_project
    width = core.config.hidden_size
    core.embeddings.LayerNorm = project
    weight, bias = (mx.concatenate([vector, vector])[:width] for vector in (norm.weight, norm.bias))
    core.embeddings_project = _Function(lambda x: mx.fast.layer_norm(x, weight, bias, norm.eps))


class _Function(nn.Module):
    """A function in the place of a module."""

    def __init__(self, function: Callable[[mx.array], mx.array]):
        super().__init__()
        self._function = function

    def __call__(self, x: mx.array) -> mx.array:
        return self._function(x)


def _transposed_projection(core: Encoder) -> None:
    """Read the matrix as if it were stored as (embedding size, hidden size)."""
    project = core.embeddings_project
    project.weight = project.weight.reshape(project.weight.shape[::-1]).T


def _cut_to_width(core: Encoder) -> None:
    """Leave the projection out, and cut the embeddings to the width of the layers."""
    core.embeddings_project = _Function(lambda x: x[..., : core.config.hidden_size])


_WIDE = "embeddings wider than the layers, odd widths, tanh-GELU"

MUTATIONS = (
    Mutation("the projection without its bias", "embeddings", change=_without_projected_bias),
    Mutation("the projection before the norm", "embeddings", change=_projected_before_the_norm),
    Mutation("the projection transposed", "embeddings", change=_transposed_projection),
    Mutation("no projection", "embeddings", change=_cut_to_width, variant=_WIDE),
    Mutation("another eps", "embeddings", config={"layer_norm_eps": 1e-3}),
    Mutation("the default eps of other frameworks", "embeddings", config={"layer_norm_eps": 1e-12}, variant=_WIDE),
    Mutation("another activation", 0, config={"hidden_act": "gelu_new"}),
    Mutation("erf-GELU for tanh-GELU", 0, config={"hidden_act": "gelu"}, variant=_WIDE),
    Mutation("half as many heads", 0, config={"num_attention_heads": 2}),
    Mutation("a layer too few", "finish", config={"num_hidden_layers": 2}),
)
