"""The element-wise part of a step, on two threads of the CPU: MLX runs the operations of one stream on one.

Norm and update treat every parameter by itself, so that where it is computed changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import mlx.core as mx

from mlxbert.backend import use_fast_blas


@dataclass(frozen=True)
class Part:
    """Some of the parameters, and the stream that they are computed on."""

    stream: mx.Stream
    names: tuple[str, ...]


def parts(sizes: Mapping[str, int]) -> tuple[Part, ...]:
    """Parameters with these numbers of elements, dealt to the streams of the default device: the largest first.

    Two parts on a CPU of several threads, one elsewhere.
    """
    device = mx.default_device()
    streams = [mx.default_stream(device)]
    if device == mx.cpu and use_fast_blas().threads > 1:
        streams.append(_second_stream())
    names: list[list[str]] = [[] for _ in streams]
    load = [0] * len(streams)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        names[least].append(name)
        load[least] += sizes[name]
    return tuple(Part(stream, tuple(own)) for stream, own in zip(streams, names, strict=True) if own)


def take(names: Sequence[str], arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """The arrays of these names, no longer in `arrays`: what nobody holds on to, MLX updates in place."""
    return {name: arrays.pop(name) for name in names if name in arrays}


@cache
def _second_stream() -> mx.Stream:
    """One for all steps: MLX keeps the thread of a stream for good."""
    return mx.new_stream(mx.cpu)
