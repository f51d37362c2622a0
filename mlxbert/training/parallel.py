"""A batch in shards of its rows, to be computed at the same time: see `mlxbert.training.parallel`.

The threads of a step on the CPU: MLX runs the operations of one stream on one thread.

So a batch is computed in shards and the weights are updated in parts, each on a stream of its own. Norm and update
treat every parameter by itself: where it is computed changes no bit of it. A shard's products and sums are of its own
rows, so that their number does: a run's threads are recorded, and a resume asks for the same.
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

# Below, a shard takes less time than handing it over.
_LEAST_TOKENS = 256


@dataclass(frozen=True)
class Shard:
    """Some rows of a batch: what `Gradients.of` takes, and the stream that they are computed on."""

    stream: mx.Stream
    inputs: Arrays
    targets: mx.array
    rows: mx.array


def split_batch(inputs: Arrays, targets: mx.array, rows: mx.array, streams: list[mx.Stream]) -> list[Shard]:
    """One shard for each stream, as equal as can be: fewer where a shard would have under 256 tokens.

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
    split = {name: mx.split(array, ends) for name, array in inputs.items()}
    all_targets, all_rows = mx.split(targets, ends), mx.split(rows, ends)
    mx.eval(split, all_targets, all_rows)  # on this stream, before others read them
    return [
        Shard(stream, {name: parts[i] for name, parts in split.items()}, all_targets[i], all_rows[i])
        for i, stream in enumerate(streams[:count])
    ]


# Every shard has gradients of its own, as large as the weights.
_MOST = 8
# The loops of norm and update wait for memory, and more threads wait no less.
_MOST_PARTS = 2


@dataclass(frozen=True)
class Part:
    """Some of the parameters, and the stream that they are computed on."""

    stream: mx.Stream
    names: tuple[str, ...]


def streams() -> list[mx.Stream]:
    """The default stream, and on a CPU with OpenBLAS one more for each further thread of it, up to 8 in all."""
    device = mx.default_device()
    threads = min(use_fast_blas().threads, _MOST) if device == mx.cpu else 1
    return [mx.default_stream(device), *(_further_stream(number, get_ident()) for number in range(1, threads))]


def parts(sizes: Mapping[str, int]) -> tuple[Part, ...]:
    """Parameters with these numbers of elements, dealt to two of `streams`: the largest first."""
    chosen = streams()[:_MOST_PARTS]
    names: list[list[str]] = [[] for _ in chosen]
    load = [0] * len(chosen)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        names[least].append(name)
        load[least] += sizes[name]
    return tuple(Part(stream, tuple(own)) for stream, own in zip(chosen, names, strict=True) if own)


def take(names: Sequence[str], arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """The arrays of these names, no longer in `arrays`: what nobody holds on to, MLX updates in place."""
    return {name: arrays.pop(name) for name in names if name in arrays}


def evaluate(outputs: Sequence[Any]) -> None:
    """Compute arrays, or trees of them, at the same time; each is to be on a stream of its own.

    From a Python thread each: `mx.eval` hands out some hundred operations and then waits for one of them
    (`MAX_ACTIVE_TASKS`, transforms.cpp), so that from one thread the last stream would begin when the first is done.
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
    """One for all steps of the thread `owner`: MLX keeps a stream's own thread for good.

    "Unsafe" is one that any thread may evaluate on, and no two at once.
    """
    return mx.new_thread_unsafe_stream(mx.cpu)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST - 1, thread_name_prefix="mlxbert-step")
