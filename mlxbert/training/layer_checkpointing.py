"""Gradient checkpointing of each encoder layer: its activations are computed again instead of kept.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. The second computation must drop what the first one dropped, and
MLX's `checkpoint` runs the layer's Python again, which draws anew from the global stream: the gradients would be those
of no network at all. So each layer's dropouts draw from keys of their own, handed to it as an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import Dropout
from mlxbert.layers import BertEncoder

Layer = Callable[..., tuple[mx.array, None]]


@contextmanager
def checkpointed_layers(encoder: BertEncoder) -> Iterator[None]:
    """Inside, every layer of `encoder` recomputes its activations in the backward pass; afterwards all as it was.

    A layer's parameters are read when it is called: set those that are differentiated by before.
    """
    layers = encoder.layer
    replaced: Any = [_recomputed(layer) for layer in layers]
    encoder.layer = replaced
    try:
        yield
    finally:
        encoder.layer = layers


class _KeyedDropout(nn.Module):
    """`nn.Dropout` whose mask is a function of a key."""

    def __init__(self, dropout: nn.Dropout, key: mx.array):
        super().__init__()
        if isinstance(dropout, Dropout):
            dropout.check_trainable()
        # A tuple under a private name: neither a parameter nor a child.
        self._keep_and_key = (dropout._p_1, key)

    def __call__(self, x: mx.array) -> mx.array:
        keep, key = self._keep_and_key
        return (mx.random.bernoulli(keep, x.shape, key=key) * x) * (1 / keep)


def _recomputed(layer: nn.Module) -> Layer:
    dropouts = [
        (module, name, child)
        for module in layer.modules()
        for name, child in module.items()
        if isinstance(child, nn.Dropout) and child._p_1 < 1
    ]

    def run(x: mx.array, mask: mx.array | None, keys: mx.array | None) -> mx.array:
        if keys is not None:
            # MLX's checkpoint differentiates by every input, and random bits have no gradient.
            for (module, name, dropout), key in zip(dropouts, mx.stop_gradient(keys), strict=True):
                setattr(module, name, _KeyedDropout(dropout, key))
        try:
            return layer(x, mask)[0]
        finally:
            for module, name, dropout in dropouts:
                setattr(module, name, dropout)

    def call(x: mx.array, mask: mx.array | None = None, output_attentions: bool = False) -> tuple[mx.array, None]:
        if output_attentions:
            raise ValueError("a checkpointed layer keeps no attention weights")
        given = {"mask": mask, "keys": _keys(len(dropouts)) if dropouts and layer.training else None}
        names = [name for name, array in given.items() if array is not None]

        # Only arrays may go through `checkpoint`, each as an input of its own.
        def of_arrays(x: mx.array, *arrays: mx.array) -> mx.array:
            return run(x, **{**dict.fromkeys(given), **dict(zip(names, arrays, strict=True))})

        recomputed: Any = nn.utils.checkpoint(layer, of_arrays)
        return recomputed(x, *(given[name] for name in names)), None

    return call


def _keys(count: int) -> mx.array:
    """(count, 2) keys from the global random stream, which takes no key of its own."""
    seed = mx.random.randint(-(2**31), 2**31 - 1, (2,), mx.int32).view(mx.uint32)
    return mx.stop_gradient(mx.random.split(seed, count))
