"""The threads of a training step on the CPU: a batch in shards, the weights in parts.

MLX runs the operations of one stream on one thread. So the shards of a batch are computed on several streams, and the
weights are updated in parts on several streams. Norm and update treat every parameter by itself, so the parts change
no bit. A shard's products and sums are of its own rows, so the number of shards changes bits: a run records its number
of threads, and a resumed run needs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from threading import get_ident
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbert.backend.device import one_blas_thread, use_fast_blas
from mlxbert.training.optimizer import Arrays

# A smaller shard takes less time than its thread's overhead.
_LEAST_TOKENS = 256
# Every shard has its own gradients, as large as the weights.
_MOST_STREAMS = 8
# Norm and update wait for the memory, and more threads wait no less.
_MOST_PARTS = 2


@dataclass(frozen=True)
class Shard:
    """Some rows of a batch, as arguments of `Gradients.of`, and their stream."""

    stream: mx.Stream
    inputs: Arrays
    targets: mx.array
    rows: mx.array


@dataclass(frozen=True)
class Part:
    """The names of some parameters, and their stream."""

    stream: mx.Stream
    names: tuple[str, ...]


def streams() -> list[mx.Stream]:
    """Return the default stream, and on a CPU with OpenBLAS one more for each further thread of it, up to 8 in all."""
    device = mx.default_device()
    threads = min(use_fast_blas().threads, _MOST_STREAMS) if device == mx.cpu else 1
    return [mx.default_stream(device), *(_further_stream(number, get_ident()) for number in range(1, threads))]


def split_batch(inputs: Arrays, targets: mx.array, rows: mx.array, streams: list[mx.Stream]) -> list[Shard]:
    """Return one shard for each stream, of equal size where possible; fewer if a shard would have under 256 tokens.

    Args:
        inputs: "input_ids" (B, L), and others of first axis B.
        targets: first axis B.
        rows: (B,).
        streams: at least one; the first is used first.
    """
    count = min(len(streams), max(inputs["input_ids"].size // _LEAST_TOKENS, 1), len(rows))
    if count == 1:
        return [Shard(streams[0], inputs, targets, rows)]
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(len(rows)), count)])[:-1].tolist()
    split_inputs = {name: mx.split(array, ends) for name, array in inputs.items()}
    split_targets, split_rows = mx.split(targets, ends), mx.split(rows, ends)
    mx.eval(split_inputs, split_targets, split_rows)  # on this stream, before others read them
    return [
        Shard(stream, {name: parts[i] for name, parts in split_inputs.items()}, split_targets[i], split_rows[i])
        for i, stream in enumerate(streams[:count])
    ]


def parts(sizes: Mapping[str, int]) -> tuple[Part, ...]:
    """Deal parameters with these numbers of elements to two of `streams`, the largest first."""
    chosen = streams()[:_MOST_PARTS]
    names: list[list[str]] = [[] for _ in chosen]
    load = [0] * len(chosen)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        names[least].append(name)
        load[least] += sizes[name]
    return tuple(Part(stream, tuple(part)) for stream, part in zip(chosen, names, strict=True) if part)


def take(names: Sequence[str], arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """Remove the arrays of these names from `arrays` and return them: MLX updates an array without other owners in
    place.
    """
    return {name: arrays.pop(name) for name in names if name in arrays}


def evaluate(outputs: Sequence[Any]) -> None:
    """Compute arrays, or trees of them, at the same time; each must be on its own stream.

    Each is evaluated from its own Python thread. `mx.eval` hands out some hundred operations and then waits for one of
    them (`MAX_ACTIVE_TASKS`, transforms.cpp), so from one thread the last stream would begin when the first is done.
    """
    first, *others = outputs
    if not others:
        mx.eval(first)
        return
    with one_blas_thread():
        futures = [_pool().submit(mx.eval, output) for output in others]
        try:
            mx.eval(first)
        finally:
            wait(futures)
    for future in futures:
        future.result()


@cache
def _further_stream(number: int, owner: int) -> mx.Stream:
    """Return the same stream for all steps of the thread `owner`, because MLX never ends a stream's thread.

    On an "unsafe" stream any thread may evaluate, but only one at a time.
    """
    return mx.new_thread_unsafe_stream(mx.cpu)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_STREAMS - 1, thread_name_prefix="mlxbert-step")
