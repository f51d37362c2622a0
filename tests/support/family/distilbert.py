"""DistilBERT's options, and mistakes with them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlxbert.models.base import Encoder, module_at
from tests.support.family import Mutation

VARIANTS: dict[str, dict[str, Any]] = {
    "odd widths, tanh-GELU, computed positions": {
        "vocab_size": 83,
        "dim": 45,
        "n_heads": 3,
        "hidden_dim": 37,
        "max_position_embeddings": 31,
        "activation": "gelu_new",
        "sinusoidal_pos_embds": True,
    },
    "one layer, ReLU, no padding token": {"n_layers": 1, "activation": "relu", "pad_token_id": None},
    "one head, more layers": {"n_heads": 1, "n_layers": 5},
}


def _sinusoidal_positions(core: Encoder) -> None:
    """Compute the table of positions instead of reading the stored one."""
    table = module_at(core, core.architecture.tables["position"])
    rows, width = table.weight.shape
    angles = np.arange(rows)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    table.weight = mx.array(np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)), mx.float32)


def _exchange_norms(core: Encoder) -> None:
    layer: Any = core.layer_modules(1)[0]
    layer.sa_layer_norm, layer.output_layer_norm = layer.output_layer_norm, layer.sa_layer_norm


def _norm_first(core: Encoder) -> None:
    """Norm the input of the feed-forward block, and not its output."""
    layer: Any = core.layer_modules(2)[0]
    norm = layer.output_layer_norm
    layer.ffn.lin1 = _After(norm, layer.ffn.lin1)
    layer.output_layer_norm = lambda x: x


class _After:
    def __init__(self, first: Any, second: Any):
        self._both = (first, second)

    def __call__(self, x: mx.array) -> mx.array:
        first, second = self._both
        output: mx.array = second(first(x))
        return output


MUTATIONS = (
    Mutation("computed positions for stored ones", "embeddings", change=_sinusoidal_positions),
    Mutation(
        "computed positions for stored ones, where the configuration says so",
        "embeddings",
        change=_sinusoidal_positions,
        variant="odd widths, tanh-GELU, computed positions",
    ),
    Mutation("the two norms exchanged", 1, change=_exchange_norms),
    Mutation("norm before the feed-forward block", 2, change=_norm_first),
    Mutation("another activation", 0, config={"activation": "gelu_new"}),
    Mutation(
        "erf-GELU for tanh-GELU",
        0,
        config={"activation": "gelu"},
        variant="odd widths, tanh-GELU, computed positions",
    ),
    Mutation("half as many heads", 0, config={"n_heads": 2}),
    Mutation("a layer too few", "finish", config={"n_layers": 2}),
)
