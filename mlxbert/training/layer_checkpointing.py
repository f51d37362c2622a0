"""Gradient checkpointing of each encoder layer: its activations are computed again instead of kept.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. The second computation must drop what the first one dropped, and
MLX's `checkpoint` runs the layer's Python again, which draws anew from the global stream: the gradients would be those of
no network at all. So each layer draws from a key of its own, handed to it as an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxbert.layers import BertEncoder


@contextmanager
def checkpointed_layers(encoder: BertEncoder) -> Iterator[None]:
    """Inside, every layer of `encoder` recomputes its activations in the backward pass; afterwards all as it was.

    Whoever differentiates must do so with the parameters already set: each layer's are read when it is called.
    """
    layers = encoder.layer
    encoder.layer = [_recomputed(layer) for layer in layers]
    try:
        yield
    finally:
        encoder.layer = layers


def _recomputed(layer: nn.Module) -> Callable[..., tuple[mx.array, None]]:
    def run(x: mx.array, mask: mx.array | None, key: mx.array) -> mx.array:
        outer = mx.random.state[0]
        mx.random.state[0] = key
        try:
            return layer(x, mask)[0]
        finally:
            mx.random.state[0] = outer

    def masked(x: mx.array, mask: mx.array, key: mx.array) -> mx.array:
        return run(x, mask, key)

    def unmasked(x: mx.array, key: mx.array) -> mx.array:
        return run(x, None, key)

    with_mask, without = nn.utils.checkpoint(layer, masked), nn.utils.checkpoint(layer, unmasked)

    def call(x: mx.array, mask: mx.array | None = None, output_attentions: bool = False) -> tuple[mx.array, None]:
        if output_attentions:
            raise ValueError("a checkpointed layer keeps no attention weights")
        random: Any = mx.random.state
        random[0], key = mx.random.split(random[0])
        return (without(x, key) if mask is None else with_mask(x, mask, key)), None

    return call
